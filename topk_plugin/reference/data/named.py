"""Data sets by their names, all in memory: digits, MNIST, Fashion-MNIST and CIFAR-10.

Digits come with scikit-learn, the others from files. Name and digest of what was read go into every
score, so that scores of other data are told apart.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from topk_plugin.errors import ConfigError, unknown_name
from topk_plugin.reference.data.readers import CLASSES, COUNTS, DATASETS, Part, read_files


class Images(NamedTuple):
    """Images of a few classes, all in memory."""

    pixels: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64, below classes
    name: str  # to be shown wherever a result is
    digest: str  # sha256 of pixels and labels, both as bytes, in hexadecimal
    classes: int


def load_images(
    dataset: str, path: str | None = None, download: bool = False, part: Part = "all"
) -> Images:
    """All images of a data set, its training part first, or the training part alone.

    Args:
        dataset: "digits" (1,797 of 8x8, embedded; they have no parts), "mnist" or "fashion-mnist"
            (28x28), "cifar10" (32x32 in colour).
        path: of MNIST and Fashion-MNIST a folder that holds the four idx files, gzipped or not, or
            torchvision's MNIST/raw or FashionMNIST/raw; or a .npz with ``images`` and ``labels``,
            or with ``x_train`` and ``y_train``, and the same for test and valid, as Keras and MEG
            have it. Its pixels are 0 to 255, or floating point in [0, 1]. Of CIFAR-10 the folder
            cifar-10-batches-py, or the one that holds it.
        download: let torchvision fetch the files to ``path`` if they are not there.
        part: "all" or "train": 60,000 of the two MNISTs, 50,000 of CIFAR-10.

    Raises:
        ConfigError: nothing to read, or something that is not such data.
    """
    if dataset not in DATASETS:
        raise unknown_name(f"dataset {dataset}", "data set", dataset, DATASETS)
    if dataset == "digits":
        if path is not None or download:
            raise ConfigError(
                f"data: found {path or 'a download'} for the data set digits, which comes with "
                f"scikit-learn; leave it out, or choose one of {', '.join(COUNTS)}"
            )
        embedded = load_digits()
        pixels = np.rint(embedded.images * (255 / 16)).astype(np.uint8)
        labels = embedded.target.astype(np.uint8)
        return _images(pixels[:, None], labels, "digits, 1,797 of 8x8")
    pixels, labels = read_files(dataset, path, download, part)
    count, whole, most = len(pixels), COUNTS[dataset]["all"], COUNTS[dataset][part]
    if count > whole:
        raise ConfigError(f"data: {path}: found {count} images, expected at most {whole}")
    count = min(count, most)  # the training part comes first
    name = DATASETS[dataset] + (", training part" if part == "train" else "")
    name += "" if count == most else f", {count:,} of {most:,}"
    return _images(pixels[:count], labels[:count], name)


def resized(images: Images, size: int) -> Images:
    """The images at ``size`` x ``size`` pixels, by bilinear interpolation; the name says so.

    Where they become smaller it is antialiased.
    """
    if images.pixels.shape[2:] == (size, size):
        return images
    smaller = size < min(images.pixels.shape[2:])
    parts = [  # as floating point all of them would take much memory
        functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=smaller)
        .round()
        .to(torch.uint8)
        for part in images.pixels.split(1_000)
    ]
    name = f"{images.name}, resized to {size}x{size}"
    return _images(torch.cat(parts).numpy(), images.labels.numpy().astype(np.uint8), name)


def centred(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels of 0 to 255 as floating point in [-1, 1]."""
    return pixels.to(dtype) / 127.5 - 1


def _images(pixels: np.ndarray, labels: np.ndarray, name: str) -> Images:
    """Of pixels (N, C, H, W) and labels (N,), both uint8."""
    pixels = np.ascontiguousarray(pixels)
    content = hashlib.sha256(pixels.data)
    content.update(np.ascontiguousarray(labels).data)
    numbers = torch.from_numpy(labels.astype(np.int64))
    return Images(torch.from_numpy(pixels), numbers, name, content.hexdigest(), CLASSES)
