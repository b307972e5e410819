"""Which images are in which batch, and what is known of them before they are decoded.

A batch is told by its number and the seed alone: a resumed run asks for the next one and gets what
it would have got, and W processes get the W parts of what one process gets.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from topk_plugin.reference.randomness import stream


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
