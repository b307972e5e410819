"""Generated samples that were copied: into a batch with real ones, or beside what they go with."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from topk_plugin.core.trees import tree_leaves

RECENT = 16
"""Outputs of modules of which the ends are remembered."""


class Samples:
    """The first and last sample of what modules returned lately, to know copies of them by."""

    def __init__(self) -> None:
        self._ends: deque[tuple[Tensor, int, frozenset[int]]] = deque(maxlen=RECENT)

    def returned(self, output: Any, optimizers: frozenset[int]) -> None:
        """A module of these ``optimizers``, by id, gave ``output``."""
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.dim() > 1 and leaf.numel():
                self._ends.append((leaf.detach()[[0, -1]], len(leaf), optimizers))

    def rows_in(self, batch: Tensor, own: frozenset[int]) -> slice | None:
        """Where in ``batch`` are samples that networks of other optimizers than ``own`` made.

        Args:
            batch: (B, ...); they are its first rows or its last ones, or their channels are.
        """
        for ends, n, optimizers in reversed(self._ends):
            if optimizers - own and ends.dtype == batch.dtype and ends.device == batch.device:
                for start in {0, len(batch) - n} if n <= len(batch) else ():
                    rows = batch.detach()[[start, start + n - 1]]
                    if any(bool((part == ends).all()) for part in _parts(rows, ends)):
                        return slice(start, start + n)
        return None


def _parts(rows: Tensor, like: Tensor) -> Iterator[Tensor]:
    """What of ``rows`` (2, C, ...) has the shape of ``like``: all of it, or channels at an end."""
    if rows.shape == like.shape:
        yield rows
    elif rows.dim() == like.dim() and rows.shape[2:] == like.shape[2:]:
        channels = like.shape[1]
        if channels < rows.shape[1]:
            yield from (rows[:, :channels], rows[:, -channels:])
