"""Real images for the reference experiments: scikit-learn's digits, MNIST and Fashion-MNIST.

Digits come with scikit-learn. The other two are read from files that are at hand, or that
torchvision fetches: the four idx files, or one .npz. What is read is checked, and its name and
digest go into every score, so that scores of other data are told apart.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from topk_plugin.errors import ConfigError

DATASETS = {"digits": "digits", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
"""Names of settings and what is shown for them."""

CLASSES, SIZE, WHOLE = 10, 28, 70_000  # of MNIST and of Fashion-MNIST

IDX = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
NPZ = (("images", "labels"), *((f"x_{part}", f"y_{part}") for part in ("train", "test", "valid")))

HINTS = {
    "mnist": "",
    "fashion-mnist": ", or install Debian's package dataset-fashion-mnist and give "
    "/usr/share/datasets/fashion-mnist",
}


class Images(NamedTuple):
    """Grey images of ten classes."""

    pixels: Tensor  # (N, H, W) uint8
    labels: Tensor  # (N,) uint8, below 10
    name: str  # to be shown wherever a result is
    digest: str  # sha256 of pixels and labels, in hexadecimal


def load_images(dataset: str, path: str | None = None, download: bool = False) -> Images:
    """All images of a data set, its training part first.

    Args:
        dataset: "digits" (1,797 of 8x8, embedded), "mnist" or "fashion-mnist" (28x28).
        path: of the latter two a folder that holds the four idx files, gzipped or not, or
            torchvision's MNIST/raw or FashionMNIST/raw; or a .npz with ``images`` and ``labels``,
            or with ``x_train`` and ``y_train``, and the same for test and valid, as Keras and MEG
            have it. Its pixels are 0 to 255, or floating point in [0, 1].
        download: let torchvision fetch the files to ``path`` if they are not there.

    Raises:
        ConfigError: nothing to read, or something that is not such data.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"dataset: found {dataset!r}, expected one of {', '.join(DATASETS)}")
    if dataset == "digits":
        if path is not None or download:
            raise ConfigError(
                f"data: found {path or 'a download'} for the data set digits, which comes with "
                "scikit-learn; leave it out, or choose the data set mnist or fashion-mnist"
            )
        embedded = load_digits()
        pixels = np.rint(embedded.images * (255 / 16)).astype(np.uint8)
        return _images(pixels, embedded.target.astype(np.uint8), "digits, 1,797 of 8x8")
    pixels, labels = _read(dataset, path, download)
    name, count = DATASETS[dataset], len(pixels)
    if count > WHOLE:
        raise ConfigError(f"data: {path}: found {count} images, expected at most {WHOLE}")
    part = "" if count == WHOLE else f", {count:,} of {WHOLE:,}"
    return _images(pixels, labels, name + part)


def resized(images: Images, size: int) -> Images:
    """The images at ``size`` x ``size`` pixels, by bilinear interpolation; the name says so."""
    if images.pixels.shape[1:] == (size, size):
        return images
    wide = functional.interpolate(
        images.pixels[:, None].float(), size=(size, size), mode="bilinear"
    )
    pixels = wide.squeeze(1).round().to(torch.uint8)
    name = f"{images.name}, resized to {size}x{size}"
    return _images(pixels.numpy(), images.labels.numpy(), name)


def _images(pixels: np.ndarray, labels: np.ndarray, name: str) -> Images:
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), name, digest)


# --- files --------------------------------------------------------------------------------------


def _read(dataset: str, path: str | None, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 28, 28) and labels (N,), both uint8."""
    if path is None:
        raise ConfigError(
            f"data: found no path for the data set {dataset}, expected a folder with its idx files "
            f"or a .npz; give one with --data, and with --download{HINTS[dataset]}"
        )
    place = Path(path).expanduser()
    if place.is_file():
        parts = _read_npz(place)
    else:
        files = _find(dataset, place)
        if files is None and download:
            _download(dataset, place)
            files = _find(dataset, place)
        if files is None:
            raise ConfigError(_missing(dataset, place))
        parts = [
            (str(images), str(labels), _read_idx(images, 3), _read_idx(labels, 1))
            for images, labels in files
        ]
    checked = [_checked(*part) for part in parts]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*checked, strict=True))
    return pixels, labels


def _folders(dataset: str, place: Path) -> list[Path]:
    """Where the idx files may lie."""
    return [place, place / DATASETS[dataset].replace("-", "") / "raw"]


def _find(dataset: str, place: Path) -> list[tuple[Path, Path]] | None:
    """The training part's and the test part's files."""

    def find(folder: Path, name: str) -> Path | None:
        both = [folder / name, folder / f"{name}.gz"]
        return next((path for path in both if path.is_file()), None)

    for folder in _folders(dataset, place):
        found = [(find(folder, images), find(folder, labels)) for images, labels in IDX]
        complete = [(images, labels) for images, labels in found if images and labels]
        if len(complete) == len(IDX):
            return complete
    return None


def _missing(dataset: str, place: Path) -> str:
    """What was found instead of the files, and what to do."""
    seen = []
    for folder in _folders(dataset, place):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        more = f" and {len(names) - 6} more" if names and len(names) > 6 else ""
        listed = "no such folder" if names is None else ", ".join(names[:6]) + more or "nothing"
        seen.append(f"  in {folder}: {listed}")
    expected = ", ".join(name for pair in IDX for name in pair)
    return (
        f"data: the files of the data set {dataset} are not all there. Found\n"
        + "\n".join(seen)
        + f"\nExpected in one of these folders {expected}, each as it is or with .gz; or the path "
        f"of a .npz. Correct the path, let torchvision fetch them with --download{HINTS[dataset]}"
    )


def _download(dataset: str, place: Path) -> None:
    try:
        from torchvision import datasets  # not above: it is needed for nothing else
    except ImportError as error:
        raise ConfigError(
            f"download: torchvision does not import ({error}); pip install torchvision, or put the "
            f"files of the data set {dataset} into {place}"
        ) from None
    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[dataset]
    try:
        kind(str(place), download=True)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"download: torchvision could not fetch the data set {dataset} to {place} ({reason}). "
            "Check the network and the folder's permissions, or fetch the files elsewhere and put "
            f"them into {_folders(dataset, place)[1]}{HINTS[dataset]}"
        ) from None


BROKEN = (
    OSError, EOFError, ValueError, KeyError, MemoryError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What reading a damaged file raises; a damaged gzip file is an OSError."""


def _reading(path: Path, read: Callable[[], Any], expected: str) -> Any:
    try:
        return read()
    except BROKEN as error:
        raise ConfigError(
            f"data: {path} cannot be read ({error or type(error).__name__}), expected {expected}; "
            "if it is truncated or damaged, delete it and fetch it again"
        ) from None


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array of bytes in the idx format: 0, 0, 8, dimensions, big-endian sizes, the bytes."""

    def read() -> np.ndarray:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            content = file.read()
        header = 4 + 4 * dimensions
        if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
            raise ValueError(f"it begins with {content[:4].hex(' ') or 'nothing'}")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
        if len(content) - header != math.prod(shape):
            raise ValueError(f"{len(content) - header} bytes for an array of shape {shape}")
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()

    expected = f"an idx file of unsigned bytes in {dimensions} dimensions (00 00 08 0{dimensions})"
    return _reading(path, read, expected)


def _read_npz(path: Path) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Each part's images and labels, after what to call them in errors."""
    names = ", ".join(f"{images} and {labels}" for images, labels in NPZ)

    def read() -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with opened as file:
            pairs = [pair for pair in NPZ if not file.keys().isdisjoint(pair)]
            if not pairs:
                raise ValueError(f"it holds {', '.join(file.keys()) or 'nothing'}")
            return [
                (f"{path}: {images}", f"{path}: {labels}", file[images], file[labels])
                for images, labels in pairs
            ]

    return _reading(path, read, f"a .npz that holds pairs of {names}")


def _checked(
    images_name: str, labels_name: str, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) as uint8.

    Images may also be (N, 784), (N, 28, 28, 1) or (N, 1, 28, 28).
    """
    shape, count = images.shape, len(images) if images.ndim else 0
    if count == 0 or tuple(side for side in shape[1:] if side != 1) not in (
        (SIZE, SIZE), (SIZE * SIZE,),
    ):  # fmt: skip
        raise ConfigError(
            f"data: {images_name}: found an array of shape {shape}, expected (N, {SIZE}, {SIZE})"
        )
    if labels.shape != (count,):
        raise ConfigError(
            f"data: {labels_name}: found an array of shape {labels.shape} beside {count} images, "
            f"expected ({count},)"
        )
    images = images.reshape(count, SIZE, SIZE)
    floating = np.issubdtype(images.dtype, np.floating)
    if not floating and images.dtype != np.uint8:
        raise ConfigError(
            f"data: {images_name}: found pixels of type {images.dtype}, expected uint8 or "
            "floating point"
        )
    if floating:
        if not (images.min() >= 0 and images.max() <= 1):  # NaN is neither
            raise ConfigError(
                f"data: {images_name}: found pixels from {images.min():g} to {images.max():g}, "
                "expected floating point in [0, 1], or uint8"
            )
        images = np.rint(images * 255).astype(np.uint8)
    with np.errstate(invalid="ignore"):  # NaN, which then differs from what it became
        whole = labels.astype(np.int64) if labels.dtype.kind in "iuf" else None
    if whole is None or (whole != labels).any() or not ((whole >= 0) & (whole < CLASSES)).all():
        raise ConfigError(
            f"data: {labels_name}: found labels {_range(labels)}, expected whole numbers from 0 to "
            f"{CLASSES - 1}"
        )
    return images, whole.astype(np.uint8)


def _range(labels: np.ndarray) -> str:
    if labels.dtype.kind in "iuf":
        return f"from {labels.min():g} to {labels.max():g}"
    return f"of type {labels.dtype}"
