"""Batches of real images by number, from memory or from a folder that is decoded as it is needed.

A batch is told by its number and the seed alone: a resumed run asks for the next one and gets what
it would have got, and W processes get the W parts of what one process gets.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from topk_plugin.errors import ConfigError, RunError, unknown_name
from topk_plugin.reference.data import (
    DATASETS,
    Images,
    centred,
    load_images,
    resized,
    torchvision_datasets,
)
from topk_plugin.reference.randomness import stream

FOLDER = "folder"
"""The data set's name where ``path`` is any folder that holds a folder for each class."""

CACHED_BYTES = 2**30
"""Up to this many bytes of decoded images a folder is decoded once and kept in memory."""

HASHED_BYTES = 2**30
"""Up to this many bytes of files all of them are read for a folder's digest."""

ENDS = 4096
"""Bytes of each file's beginning and end that are read for the digest of a larger folder."""

PROBED = 256
"""Images of a folder that are opened to learn whether all are grey."""

GREY_MODES = ("1", "L", "LA")  # of Pillow
DEEP_MODES = ("I", "F")  # and I;16, I;16B: more than 8 bits, which Pillow would clip

DECODED = 256
"""Images at once where a folder is decoded in order."""


class Source(Protocol):
    """Real images of one data set and one seed."""

    name: str  # to be shown wherever a result is; has the number of images in it
    digest: str
    count: int
    classes: int
    channels: int
    nbytes: int  # of all the images, decoded
    length: int  # batches an epoch; the last, partial one is left out

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of the batch ``step``, counted from 0 over all epochs.

        Returns:
            images (b, C, H, W), float32 in [-1, 1], in channels-last memory, and labels (b,),
            int64, both on the device.

        Raises:
            ConfigError: an image is damaged.
            RunError: a process that decodes images ended.
        """

    def all(self, size: int) -> Iterator[Tensor]:
        """Every image once, in order: uint8 (b, C, H, W) on the device, b at most ``size``.

        Raises:
            ConfigError, RunError: as :meth:`at`.
        """


def source(
    dataset: str,
    path: str | None,
    download: bool,
    *,
    size: int,
    batch: int,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    channels: int | None = None,
    workers: int | None = None,
) -> Source:
    """The training part of a data set at ``size`` x ``size`` pixels.

    A folder is counted here, and its images are decoded later: all of them at the first use where
    that makes at most ``CACHED_BYTES``, else each batch when its turn comes.

    Args:
        dataset, path, download: see :func:`load_images`; or "folder" and the path of a folder that
            holds a folder for each class.
        batch: images in a batch of all processes together, a multiple of ``world``.
        rank, world: which of how many processes this is.
        channels: 1 or 3. None: as the data are; a folder is grey if all of up to 256 of its images
            are. Images of a folder are converted.
        workers: processes that decode a folder. None: a core each, at most 8.

    Raises:
        ConfigError: no such data, or data that these settings do not fit.
    """
    if dataset not in (*DATASETS, FOLDER):
        raise unknown_name(f"dataset {dataset}", "data set", dataset, [*DATASETS, FOLDER])
    if batch % world:
        raise ConfigError(
            f"batch: found {batch} for {world} processes, expected a multiple of {world}, such as "
            f"--set batch={-(-batch // world) * world}"
        )
    order = functools.partial(Order, batch=batch, seed=seed, rank=rank, world=world)
    if dataset == FOLDER:
        if download:
            raise ConfigError(
                "download: found a download for a folder of images, which must be there; leave it "
                f"out, or choose one of {', '.join(DATASETS)}"
            )
        folder = open_folder(path, size, channels)
        facts, workers = folder.facts, _decoders(world) if workers is None else workers
        if multiprocessing.current_process().daemon:
            workers = 0  # it may not have processes of its own
        if facts.nbytes > CACHED_BYTES:
            return Streamed(folder, order(_enough(facts, batch, world)), device, workers)
        load = functools.partial(decoded, folder, workers)
        return Cached(facts, load, order(_enough(facts, batch, world)), device)
    images = resized(load_images(dataset, path, download, part="train"), size)
    own = images.pixels.shape[1]
    if channels not in (None, own):
        kind = "grey" if own == 1 else "in colour"
        raise ConfigError(
            f"channels: found {channels} for {images.name}, whose images are {kind}, expected "
            f"{own}; leave channels out, or convert the images and give them as a folder"
        )
    facts = Facts(images.name, images.digest, len(images.labels), images.classes, own, size)
    return Cached(facts, lambda: images[:2], order(_enough(facts, batch, world)), device)


def _enough(facts: Facts, batch: int, world: int) -> int:
    """The number of images, which must make a batch."""
    if facts.count < batch:
        most = max(facts.count // world, 1) * world
        raise ConfigError(
            f"batch: found {batch}, expected at most the {facts.count} images of {facts.name}; "
            f"lower it, such as --set batch={most}, or take more images"
        )
    return facts.count


def _decoders(world: int) -> int:
    """Cores of this machine for each of its processes, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # torchrun's, of this machine alone
    return max(1, min(8, (cores or 1) // beside))


# --- order --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """An epoch's order of the images, (count,) int64; drawn on the CPU, the same for any device."""
    return torch.randperm(count, generator=stream("order", seed, epoch, device=torch.device("cpu")))


@dataclass(frozen=True)
class Order:
    """Which images are in which batch."""

    count: int
    batch: int  # of all processes together
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def length(self) -> int:
        """Batches an epoch."""
        return self.count // self.batch

    def rows(self, step: int) -> Tensor:
        """The images (batch / world,) of this process in the batch ``step``."""
        epoch, number = divmod(step, self.length)
        part = self.batch // self.world
        start = number * self.batch + self.rank * part
        return permutation(self.count, self.seed, epoch)[start : start + part]


@dataclass(frozen=True)
class Facts:
    """What is known of images before they are decoded."""

    name: str
    digest: str
    count: int
    classes: int
    channels: int
    size: int

    @property
    def nbytes(self) -> int:
        """Of all the images, decoded."""
        return self.count * self.channels * self.size**2


class _Described:
    """The attributes of a :class:`Source`."""

    def __init__(self, facts: Facts, order: Order, device: torch.device) -> None:
        self.name, self.digest, self.count = facts.name, facts.digest, facts.count
        self.classes, self.channels, self.nbytes = facts.classes, facts.channels, facts.nbytes
        self.length = order.length
        self.order, self.device = order, device

    def _images(self, pixels: Tensor) -> Tensor:
        return centred(pixels.contiguous(memory_format=torch.channels_last))


# --- from memory --------------------------------------------------------------------------------


class Cached(_Described):
    """Images that lie on the device, one byte a number.

    Args:
        facts: of the images.
        load: gives pixels (N, C, H, W), uint8, and labels (N,), int64; called at the first use.
        order: of the batches.
        device: where they are kept and given out.
    """

    def __init__(
        self, facts: Facts, load: Callable[[], tuple[Tensor, Tensor]], order: Order,
        device: torch.device,
    ) -> None:  # fmt: skip
        super().__init__(facts, order, device)
        self._load = load

    @functools.cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        pixels, labels = self._load()
        return pixels.to(self.device), labels.to(self.device)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Source`."""
        pixels, labels = self._kept
        rows = self.order.rows(step).to(self.device, non_blocking=True)
        return self._images(pixels[rows]), labels[rows]

    def all(self, size: int) -> Iterator[Tensor]:
        """See :class:`Source`."""
        yield from self._kept[0].split(size)

    def images(self) -> Images:
        """All of it."""
        pixels, labels = (tensor.cpu() for tensor in self._kept)
        return Images(pixels, labels, self.name, self.digest, self.classes)


# --- from a folder ------------------------------------------------------------------------------


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


def _batches(folder: Folder, rows: Any, workers: int, pinned: bool = False) -> DataLoader[Any]:
    """``rows`` gives the positions of each batch, a list; the order of batches is kept."""
    return DataLoader(
        folder, sampler=rows, batch_size=None, num_workers=workers, pin_memory=pinned,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # each pass draws a seed, not from the global one
    )  # fmt: skip


def _next(batches: Iterator[Any]) -> tuple[Tensor, Tensor]:
    """The next batch of :func:`_batches`.

    Raises:
        ConfigError: an image is damaged.
        RunError: a worker process ended.
        StopIteration: there is none.
    """
    try:
        found = next(batches)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith("DataLoader worker"):
            raise
        raise RunError(
            f"data: a process that decodes images ended ({reason}), perhaps for want of memory; "
            "take fewer of them and give the same command again"
        ) from error
    if isinstance(found, str):
        raise ConfigError(found)
    pixels, labels = found
    return pixels, labels


def _in_order(folder: Folder, size: int, workers: int, pinned: bool = False) -> Iterator[Tensor]:
    """Pixels (b, C, H, W) of all images, uint8."""
    count = folder.facts.count
    rows = [[*range(i, min(i + size, count))] for i in range(0, count, size)]
    batches = iter(_batches(folder, rows, min(workers, len(rows)), pinned))
    for _ in rows:
        yield _next(batches)[0]


def decoded(folder: Folder, workers: int) -> tuple[Tensor, Tensor]:
    """All pixels (N, C, H, W), uint8, and labels (N,), int64, of a folder.

    Raises:
        ConfigError, RunError: as :meth:`Source.at`.
    """
    facts = folder.facts
    pixels = torch.empty(facts.count, facts.channels, facts.size, facts.size, dtype=torch.uint8)
    for place, part in zip(
        pixels.split(DECODED), _in_order(folder, DECODED, workers), strict=True
    ):  # fmt: skip
        place.copy_(part)
    return pixels, folder.labels


class _Ahead:
    """Positions for all batches from ``start`` on, without an end."""

    def __init__(self, order: Order) -> None:
        self.order, self.start = order, 0

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start):
            yield self.order.rows(step).tolist()


class Streamed(_Described):
    """Images that are decoded as they are needed, by processes that work ahead.

    Batches that are asked for in turn are ready early; any other one makes the processes begin
    anew from there.

    Args:
        folder: the images.
        order: of the batches.
        device: where they are given out.
        workers: processes that decode; 0: this one does.
    """

    def __init__(self, folder: Folder, order: Order, device: torch.device, workers: int) -> None:
        super().__init__(folder.facts, order, device)
        self._folder, self._workers, self._ahead = folder, workers, _Ahead(order)
        self._pinned = device.type == "cuda"
        self._loader = _batches(folder, self._ahead, workers, self._pinned)
        self._batches: Iterator[Any] | None = None
        self._coming = -1  # the next batch of these

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Source`."""
        if self._batches is None or step != self._coming:
            self._ahead.start = step
            self._batches = iter(self._loader)
        self._coming = -1  # unless this one comes out well
        pixels, labels = _next(self._batches)
        self._coming = step + 1
        pixels = pixels.to(self.device, non_blocking=True)
        return self._images(pixels), labels.to(self.device, non_blocking=True)

    def all(self, size: int) -> Iterator[Tensor]:
        """See :class:`Source`."""
        for pixels in _in_order(self._folder, size, self._workers, self._pinned):
            yield pixels.to(self.device, non_blocking=True)
