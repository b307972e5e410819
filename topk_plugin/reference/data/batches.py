"""Batches of real images by number, from memory or from a folder, decoded as they are needed."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from topk_plugin.errors import ConfigError, RunError, unknown_name
from topk_plugin.reference.data.folder import Folder, open_folder
from topk_plugin.reference.data.named import Images, centred, load_images, resized
from topk_plugin.reference.data.order import Facts, Order
from topk_plugin.reference.data.readers import DATASETS

FOLDER = "folder"
"""The data set's name where ``path`` is any folder that holds a folder for each class."""

CACHED_BYTES = 2**30
"""Up to this many bytes of decoded images a folder is decoded once and kept in memory."""

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


class _Described:
    """The attributes of a :class:`Source`."""

    def __init__(self, facts: Facts, order: Order, device: torch.device) -> None:
        self.name, self.digest, self.count = facts.name, facts.digest, facts.count
        self.classes, self.channels, self.nbytes = facts.classes, facts.channels, facts.nbytes
        self.length = order.length
        self.order, self.device = order, device

    def _images(self, pixels: Tensor) -> Tensor:
        return centred(pixels.contiguous(memory_format=torch.channels_last))


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
