"""Which tensors hold samples that a generator made: the same memory, or a copy of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from topk_plugin.core.graph import is_capturing
from topk_plugin.core.trees import tree_leaves

REMEMBERED = 1000
"""Tensors that are remembered: more come only where no optimizer is seen."""

RECENT = 16
"""Outputs of modules of which the ends are remembered."""

TELLING = 2
"""Numbers of a sample by which it is known again beside others; fewer may be those by chance."""

Whose = TypeVar("Whose")


class Ends(NamedTuple):
    """The first and the last sample of what a module returned."""

    samples: Tensor  # (2, N), flattened
    size: int  # of the batch
    whose: Any


class Generated(Generic[Whose]):
    """What modules of generators returned; holds none of it but a copy of two samples.

    Args:
        whose: says of what generator a module is, if it is of one.
    """

    def __init__(self, whose: Callable[[nn.Module], Whose | None]) -> None:
        self._whose = whose
        self._lock = threading.Lock()  # DataParallel's replicas run in threads
        self._of: dict[StorageWeakRef, Whose] = {}
        self._ends: deque[Ends] = deque(maxlen=RECENT)

    def returned(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """``module(*arguments)`` gave ``output``; noted if it is of a generator."""
        whose = self._whose(module)
        if whose is None:
            return
        given = {storage_of(leaf) for leaf in tree_leaves(arguments)}  # it may hand it on
        made = [(storage_of(leaf), leaf) for leaf in tree_leaves(output)]
        with self._lock:
            if len(self._of) > REMEMBERED:
                alive = {key: of for key, of in self._of.items() if not key.expired()}
                self._of = alive if len(alive) <= REMEMBERED else {}
            for storage, leaf in made:
                if storage is not None and storage not in given:
                    self._of[storage] = whose
                    if leaf.dim() > 1 and leaf.numel() and not is_capturing(leaf):
                        ends = [leaf.detach()[place].flatten() for place in (0, -1)]
                        self._ends.append(Ends(torch.stack(ends), len(leaf), whose))

    def by(self, tensor: Any) -> Whose | None:
        """Whose generator returned ``tensor``, or what it is a view of."""
        storage = storage_of(tensor) if self._of else None
        return None if storage is None else self._of.get(storage)

    def copied_to(
        self, batch: Tensor, accepts: Callable[[Whose], bool] = lambda whose: True
    ) -> tuple[Whose, Tensor] | None:
        """Where ``batch`` holds copies of generated samples (the device is waited for).

        Args:
            batch: (B, ...), of which generated ones are rows that follow each other, whole or with
                something before or behind (the channels of a condition, say).
            accepts: whether a generator's may count.

        Returns:
            whose they are, of several generators one's, and (B,) bool; None: nowhere.
        """
        if not self._ends or batch.dim() < 2 or is_capturing(batch) or storage_of(batch) is None:
            return None
        whose, found = None, torch.zeros(len(batch), dtype=torch.bool)
        for ends in list(self._ends):
            if accepts(ends.whose):
                for start in _starts(batch.detach(), ends):
                    whose = ends.whose
                    found[start : start + ends.size] = True
        return None if whose is None else (whose, found.to(batch.device))

    def clear(self) -> None:
        """Forget them."""
        with self._lock:
            self._of = {}
            self._ends.clear()


def _starts(batch: Tensor, ends: Ends) -> list[int]:
    """The rows of ``batch`` from which it holds a copy of what has these ``ends``."""
    like, size = ends.samples, ends.size
    if size > len(batch) or (like.dtype, like.device) != (batch.dtype, batch.device):
        return []
    varies = (like != like[0, 0]).any()  # zeros are those of anything
    starts: list[int] = []
    for part in _parts(batch.flatten(1), like.shape[1]):
        first, last = ((part == one).all(1) for one in like)
        hits = first[: len(batch) - size + 1] & last[size - 1 :] & varies
        starts += hits.nonzero().flatten().tolist()
    return starts


def _parts(rows: Tensor, numbers: int) -> Iterator[Tensor]:
    """The ``numbers`` of ``rows`` (B, N) at either end, if they tell; or all of them."""
    if numbers == rows.shape[1]:
        yield rows
    elif TELLING <= numbers < rows.shape[1]:
        yield from (rows[:, :numbers], rows[:, -numbers:])


def storage_of(value: Any) -> StorageWeakRef | None:
    """A weak reference to what holds a tensor's numbers; None where that cannot be told."""
    if not isinstance(value, Tensor):
        return None
    try:
        return StorageWeakRef(value.untyped_storage())
    except (RuntimeError, NotImplementedError):  # sparse tensors, and those inside vmap, have none
        return None
