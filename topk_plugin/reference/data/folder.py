"""Any folder that holds a folder of images for each class: listed, checked, and decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from topk_plugin.errors import ConfigError
from topk_plugin.reference.data.order import Facts
from topk_plugin.reference.data.readers import torchvision_datasets

HASHED_BYTES = 2**30
"""Up to this many bytes of files all of them are read for a folder's digest."""

ENDS = 4096
"""Bytes of each file's beginning and end that are read for the digest of a larger folder."""

PROBED = 256
"""Images of a folder that are opened to learn whether all are grey."""

GREY_MODES = ("1", "L", "LA")  # of Pillow
DEEP_MODES = ("I", "F")  # and I;16, I;16B: more than 8 bits, which Pillow would clip


class Folder(Dataset[Any]):
    """The images of a folder by their positions, a batch at once."""

    def __init__(self, root: Path, paths: np.ndarray, labels: Tensor, facts: Facts) -> None:
        from torchvision import transforms  # only folders need it

        self.root, self.paths, self.labels, self.facts = root, paths, labels, facts
        # of torchvision.transforms on Pillow's images, where bilinear is antialiased always
        bilinear = transforms.InterpolationMode.BILINEAR
        self.cut = transforms.Compose(
            [transforms.Resize(facts.size, bilinear), transforms.CenterCrop(facts.size)]
        )

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor] | str:
        """Pixels (b, C, H, W), uint8, and labels (b,), int64, of the images ``rows``.

        What is wrong with an image is returned, since what a worker process raises comes out with
        the worker's traceback in its message.
        """
        facts = self.facts
        pixels = torch.empty(len(rows), facts.channels, facts.size, facts.size, dtype=torch.uint8)
        try:
            for place, row in zip(pixels, rows, strict=True):
                cut = self._decode(self.root / os.fsdecode(self.paths[row]))
                place.copy_(torch.from_numpy(cut).view(facts.size, facts.size, -1).permute(2, 0, 1))
        except ConfigError as error:
            return str(error)
        return pixels, self.labels[rows]

    def _decode(self, path: Path) -> np.ndarray:
        """Pixels (H, W) or (H, W, 3), uint8."""
        mode = "L" if self.facts.channels == 1 else "RGB"
        return _opened(path, lambda image: np.array(self.cut(image.convert(mode))))


def open_folder(path: str | None, size: int, channels: int | None = None) -> Folder:
    """A folder of class folders, as torchvision's ImageFolder finds them.

    The shorter side of an image becomes ``size`` pixels (bilinear, antialiased), and the centre is
    cut out. The digest is the sha256 of the size in pixels, the channels, and all images' paths
    within the folder, in order, with their sizes in bytes and contents; where the files have more
    than ``HASHED_BYTES``, with the first and the last ``ENDS`` bytes of each.

    Raises:
        ConfigError: no folder, no class folders, a class without images, a damaged image among
            those that are probed, or ``channels=3`` where all of those are grey.
    """
    root = Path(path).expanduser() if path is not None else None
    paths, labels, classes = _listed(root)
    assert root is not None  # or there is no list
    modes = _probed(root, paths)
    grey = all(mode in GREY_MODES for mode in modes)
    if channels == 3 and grey:
        raise ConfigError(
            f"channels: found 3 for {root}, where each of the {len(modes)} images that were looked "
            "at is grey, expected 1; leave channels out, or convert the images"
        )
    channels = channels or (1 if grey else 3)
    content = hashlib.sha256(f"{channels}x{size}x{size}\n".encode())
    content.update(_contents(root, sorted(paths.tolist())))
    name = f"{root.resolve().name}, {len(paths):,} images of {classes:,} classes at {size}x{size}"
    facts = Facts(name, content.hexdigest(), len(paths), classes, channels, size)
    return Folder(root, paths, labels, facts)


def _listed(root: Path | None) -> tuple[np.ndarray, Tensor, int]:
    """Paths (N,) as bytes, which take little memory, labels (N,), and the number of classes."""
    expected = "expected a folder that holds a folder of images for each class"
    if root is None:
        raise ConfigError(
            f"data: found no path for the data set folder, {expected}; give one with --data"
        )
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise ConfigError(f"data: {root}: found {found}, {expected}; correct the path")
    datasets = torchvision_datasets("a folder of images")
    extensions = datasets.folder.IMG_EXTENSIONS
    try:
        if not any(entry.is_dir() for entry in root.iterdir()):
            files = sum(1 for _ in root.iterdir())
            raise ConfigError(
                f"data: {root}: found no class folder, only {files} files, {expected}; if they are "
                "of one class, put them into one folder within it"
            )
        listed = datasets.ImageFolder(str(root), allow_empty=True)
    except OSError as error:
        raise ConfigError(f"data: {root} cannot be read ({error}); correct the path") from None
    labels = torch.tensor(listed.targets, dtype=torch.int64)
    counts = labels.bincount(minlength=len(listed.classes)).tolist()
    if empty := [name for name, count in zip(listed.classes, counts, strict=True) if not count]:
        more = f" and {len(empty) - 6} more" if len(empty) > 6 else ""
        raise ConfigError(
            f"data: {root}: found no image in the class folders {', '.join(empty[:6])}{more}, "
            f"expected files that end in {', '.join(extensions)}; remove these folders, or fill "
            "them"
        )
    paths = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in listed.samples])
    return paths, labels, len(listed.classes)


def _contents(root: Path, relative: list[bytes]) -> bytes:
    """A digest of files: of their paths, sizes and contents, or the ends of these."""
    found = hashlib.sha256()
    try:
        lengths = [os.stat(root / os.fsdecode(path)).st_size for path in relative]
        whole = sum(lengths) <= HASHED_BYTES
        for path, length in zip(relative, lengths, strict=True):
            found.update(b"%s\0%d\n" % (path, length))
            with open(root / os.fsdecode(path), "rb") as file:
                if whole or length <= 2 * ENDS:
                    found.update(file.read())
                else:
                    found.update(file.read(ENDS))
                    file.seek(-ENDS, os.SEEK_END)
                    found.update(file.read(ENDS))
    except OSError as error:
        raise _unreadable(Path(error.filename or root), error) from None
    return found.digest()


def _probed(root: Path, paths: np.ndarray) -> list[str]:
    """Pillow's modes of evenly spaced images; only their headers are read."""
    rows = np.linspace(0, len(paths) - 1, min(len(paths), PROBED)).astype(int)
    return [_opened(root / os.fsdecode(paths[row]), lambda image: image.mode) for row in rows]


def _opened(path: Path, use: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(path) as image:
            mode, used = image.mode, use(image)
    except Exception as error:  # Pillow's readers raise anything where a file is damaged
        raise _unreadable(path, error) from None
    if mode.startswith(DEEP_MODES):
        raise ConfigError(
            f"data: {path}: found pixels of more than 8 bits (Pillow's mode {mode}), expected 8 "
            "bits; convert the image"
        )
    return used


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"data: {path} cannot be read ({type(error).__name__}: {error}), expected an image; if it "
        "is truncated or damaged, replace or remove it"
    )
