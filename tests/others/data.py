"""Small data sets, in the files that the scripts read, made of scikit-learn's digits."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

IMAGES = 32


def digits(size: int, first: int = 0, many: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """``many`` images (N, size, size), uint8, and their labels."""
    images, labels = load_digits(return_X_y=True)
    some = (images[first : first + many].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((size, size))) for image in some]
    return np.stack(resized), labels[first : first + many].astype(np.uint8)


def coloured(size: int, first: int = 0, many: int = IMAGES) -> np.ndarray:
    """(N, size, size, 3), uint8, each of a colour of its own."""
    images = digits(size, first, many)[0].astype(float)
    colours = np.random.default_rng(first).uniform(0.3, 1, (many, 1, 1, 3))
    return (images[..., None] * colours).astype(np.uint8)


def mnist(data: Path) -> None:
    """The idx files of MNIST, training and test images."""
    folder = data / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("t10k", IMAGES)):
        images, labels = digits(28, first)
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        for path in folder.glob(f"{part}-*-ubyte"):
            path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))


def mnist_m(data: Path) -> None:
    """MNIST, and the tensors that MNIST-M is unpacked to: (N, 28, 28, 3) and the labels."""
    mnist(data)
    folder = data / "mnistm" / "processed"
    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("test", IMAGES)):
        labels = torch.as_tensor(digits(28, first)[1])
        images = torch.as_tensor(coloured(28, first))
        torch.save((images, labels.long()), folder / f"mnist_m_{part}.pt")


def _write(folder: Path, images: np.ndarray, kind: str = "png") -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06}.{kind}")


def pairs(data: Path) -> None:
    """Images whose halves belong together."""
    for part, first in (("train", 0), ("val", IMAGES)):
        both = np.concatenate([coloured(32, first, 16), coloured(32, first + 1, 16)], 2)
        _write(data / "pairs" / part, both)


def domains(data: Path) -> None:
    """Two folders of images of two kinds."""
    for part, first in (("train", 0), ("test", IMAGES)):
        for number, domain in enumerate("AB"):
            _write(data / "domains" / part / domain, coloured(32, first + 100 * number, 16))


def faces(data: Path) -> None:
    """16 images."""
    _write(data / "faces", coloured(32, 0, 16), "jpg")


def many_faces(data: Path) -> None:
    """Files of which the last 4,000 are held out: 16 images, again and again."""
    _repeated(data / "faces", 4000)


def celeba(data: Path) -> None:
    """Files of which the last 2,000 are held out, and their attributes."""
    names = _repeated(data / "faces", 2000)
    attributes = ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]
    values = np.random.default_rng(0).choice(["-1", "1"], (len(names), 5))
    lines = [f"{name} {' '.join(row)}" for name, row in zip(names, values, strict=True)]
    text = "\n".join([str(len(names)), " ".join(attributes), *lines])
    (data / "faces" / "list_attr_celeba.txt").write_text(text + "\n")


def _repeated(folder: Path, held_out: int) -> list[str]:
    _write(folder, coloured(32, 0, 16), "jpg")
    for number in range(16, 16 + held_out):
        (folder / f"{number:06}.jpg").symlink_to(f"{number % 16:06}.jpg")
    return sorted(path.name for path in folder.glob("*.jpg"))


Writer = Callable[[Path], None]
