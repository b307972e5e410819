"""The mixture's modes, and how well samples of any generator cover them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.errors import ConfigError

BINS = ("0–1", "1–2", "2–3", "3–4", "> 4")
"""Distances to the nearest mode, in std, of Figures 2 and 3."""


def grid_modes(modes: int, spacing: float) -> Tensor:
    """The modes' centres, (modes, 2): a square grid around the origin.

    Raises:
        ConfigError: ``modes`` is no square number.
    """
    side = math.isqrt(max(modes, 0))
    if side < 1 or side * side != modes:
        raise ConfigError(f"found {modes} modes, expected a square number such as 25, 64 or 100")
    ticks = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(ticks, ticks).reshape(modes, 2).float()


class Coverage(NamedTuple):
    """How well samples cover the modes (paper, section 4.1)."""

    high_quality: float  # percent of the samples, within 4 std of the nearest mode
    modes: float  # percent of the modes that are nearest to at least one such sample
    nonfinite: int  # samples with NaN or infinite coordinates; of high quality is none of them


def mode_coverage(samples: Tensor, centers: Tensor, std: float) -> Coverage:
    """Table 1's two metrics, for samples (N, 2) of any generator and modes (M, 2)."""
    nearest, distance = nearest_mode(samples, centers)
    good = distance <= 4 * std
    found = torch.unique(nearest[good]).numel()
    broken = int((~samples.isfinite().all(dim=1)).sum())
    return Coverage(100 * good.double().mean().item(), 100 * found / len(centers), broken)


def nearest_mode(samples: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Index (N,) of the nearest centre (M, 2) of each sample (N, 2), and the distance (N,)."""
    # not cdist: its matrix form loses digits where a sample lies on a mode
    distance, nearest = (samples[:, None] - centers).norm(dim=2).min(dim=1)
    return nearest, distance
