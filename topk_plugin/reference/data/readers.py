"""The files of known data sets: where they may lie, how they are read, and what is checked.

For the two MNISTs the four idx files, or one .npz; for CIFAR-10 the batches for Python.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topk_plugin.errors import ConfigError

DATASETS = {
    "digits": "digits", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10",
}  # fmt: skip
"""Names of settings and what is shown for them."""

GREY = ("digits", "mnist", "fashion-mnist")
CLASSES = 10  # of each of them
SIZE = 28  # of MNIST and of Fashion-MNIST

COUNTS = {
    "mnist": {"all": 70_000, "train": 60_000},
    "fashion-mnist": {"all": 70_000, "train": 60_000},
    "cifar10": {"all": 60_000, "train": 50_000},
}
Part = Literal["all", "train"]

IDX = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
NPZ = (("images", "labels"), *((f"x_{part}", f"y_{part}") for part in ("train", "test", "valid")))

HINTS = {
    "mnist": "",
    "fashion-mnist": ", or install Debian's package dataset-fashion-mnist and give "
    "/usr/share/datasets/fashion-mnist",
    "cifar10": "",
}


def read_files(
    dataset: str, path: str | None, download: bool, part: Part
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, C, H, W) and labels (N,), both uint8; of "train" perhaps more, but those first."""
    if path is None:
        form = "its batches for Python" if dataset == "cifar10" else "its idx files or a .npz"
        raise ConfigError(
            f"data: found no path for the data set {dataset}, expected a folder with {form}; "
            f"give one with --data, and with --download{HINTS[dataset]}"
        )
    place = Path(path).expanduser()
    if dataset == "cifar10":
        return _read_cifar10(place, download, part)
    if place.is_file():
        parts = _read_npz(place, part)
    else:
        files = _find(dataset, place)
        if files is None and download:
            _download(dataset, place)
            files = _find(dataset, place)
        if files is None:
            raise ConfigError(_missing(dataset, place))
        parts = [
            (str(images), str(labels), _read_idx(images, 3), _read_idx(labels, 1))
            for images, labels in (files[:1] if part == "train" else files)
        ]
    checked = [_checked(*part) for part in parts]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*checked, strict=True))
    return pixels[:, None], labels


def _read_cifar10(place: Path, download: bool, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, 32, 32) and labels (N,), both uint8; torchvision compares the checksums."""
    kind = torchvision_datasets("the data set cifar10").CIFAR10
    place = place.parent if place.name == kind.base_folder else place

    def read() -> tuple[np.ndarray, np.ndarray]:
        wanted = [True] if part == "train" else [True, False]
        parts = [kind(str(place), train=train) for train in wanted]
        pixels = np.concatenate([each.data for each in parts]).transpose(0, 3, 1, 2)
        return pixels, np.concatenate([each.targets for each in parts]).astype(np.uint8)

    try:
        return read()
    except (RuntimeError, OSError):
        if not download:
            raise ConfigError(_unfit_cifar10(kind, place)) from None
    _download("cifar10", place)
    return read()


def _unfit_cifar10(kind: Any, place: Path) -> str:
    """What was found instead of the genuine files, and what to do."""
    from torchvision.datasets.utils import check_integrity

    folder = place / kind.base_folder
    seen = []
    for name, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        try:
            fits = check_integrity(str(folder / name), md5)
            found = (
                "is another file than the genuine one" if (folder / name).exists() else "missing"
            )
        except OSError as error:
            fits, found = False, f"cannot be read ({error.strerror})"
        seen += [] if fits else [f"  {name}: {found}"]
    return (
        f"data: the files of the data set cifar10 are not all there or not the genuine ones. Found "
        f"in {folder}\n"
        + ("\n".join(seen) if folder.is_dir() else "  no such folder")
        + f"\nExpected there the genuine {', '.join(name for name, _ in kind.train_list)}, "
        f"{kind.test_list[0][0]} and {kind.meta['filename']}. Correct the path, or let torchvision "
        f"fetch them with --download, which also unpacks a {kind.filename} that lies in {place}"
    )


def _kind(dataset: str) -> str:
    """What torchvision calls it."""
    return DATASETS[dataset].replace("-", "")


def _folders(dataset: str, place: Path) -> list[Path]:
    """Where the idx files may lie."""
    return [place, place / _kind(dataset) / "raw"]


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


def torchvision_datasets(what: str) -> Any:
    """The module; ``what`` needs it.

    Raises:
        ConfigError: it does not import.
    """
    try:
        from torchvision import datasets  # not above: most data sets do without
    except ImportError as error:
        raise ConfigError(
            f"data: {what} needs torchvision, which does not import ({error}); pip install "
            "torchvision"
        ) from None
    return datasets


def _download(dataset: str, place: Path) -> None:
    kind = getattr(torchvision_datasets(f"a download of {dataset}"), _kind(dataset))
    try:
        kind(str(place), download=True)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split())
        home = place / kind.base_folder if dataset == "cifar10" else _folders(dataset, place)[1]
        raise ConfigError(
            f"download: torchvision could not fetch the data set {dataset} to {place} ({reason}). "
            "Check the network and the folder's permissions, or fetch the files elsewhere and put "
            f"them into {home}{HINTS[dataset]}"
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


def _read_npz(path: Path, part: Part) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Each part's images and labels, after what to call them in errors."""
    names = ", ".join(f"{images} and {labels}" for images, labels in NPZ)

    def read() -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with opened as file:
            wanted = [pair for pair in NPZ if part == "all" or "test" not in pair[0]]
            pairs = [pair for pair in wanted if not file.keys().isdisjoint(pair)]
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
