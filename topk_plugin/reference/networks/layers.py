"""What the networks for images of several sizes share: checks of sizes and labels."""

from __future__ import annotations

from torch import Tensor

from topk_plugin.errors import ConfigError

SMALLEST = 16
"""Pixels of the smallest images: an edge of 4 is doubled at least twice."""


def doublings(size: int, channels: int) -> int:
    """How often an edge of 4 pixels doubles on its way to ``size``.

    Raises:
        ConfigError: ``size`` is no power of two or below 16, or images are neither grey nor RGB.
    """
    if size < SMALLEST or size & (size - 1):
        raise ConfigError(
            f"images of {size} pixels: these networks double an edge of 4, so expected a power of "
            f"two, at least {SMALLEST}; resize the images"
        )
    if channels not in (1, 3):
        raise ConfigError(f"images of {channels} channels: expected 1 (grey) or 3 (RGB)")
    return size.bit_length() - 3


def labels_of(y: Tensor | None, classes: int) -> Tensor | None:
    """``y`` for a network that is conditional on ``classes``; None for one that is not.

    Raises:
        ConfigError: the network needs labels and got none.
    """
    if classes and y is None:
        raise ConfigError(f"found no labels, expected (B,) of {classes} classes: pass y")
    return y if classes else None
