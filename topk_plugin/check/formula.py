"""The paper's formula in plain Python, and how far from it is rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Largest relative error of a gradient that is rounding."""

REPEATS = 4
"""Times what a device gives for the same backward twice, up to which an error is the device's."""

LARGEST_NOISE = 1e-3
"""Where a device differs more from itself in float32, nothing can be said."""


def sorted_rows(scores: Sequence[float], k: int, sign: float) -> list[bool]:
    """Which k rows are kept: the highest of ``sign * score``, ties by position, NaN last."""

    def key(row: int) -> tuple[bool, float]:
        score = scores[row]
        return (True, 0.0) if math.isnan(score) else (False, -sign * score)

    kept = set(sorted(range(len(scores)), key=key)[:k])
    return [row in kept for row in range(len(scores))]


def asked_direction(row_gradient: Sequence[float]) -> int:
    """Which scores a loss wants: 1 higher, as descent moves against a gradient, -1 lower, 0."""
    falls = sum(g < 0 for g in row_gradient)
    rises = sum(g > 0 for g in row_gradient)
    return (falls > rises) - (falls < rises)


def literal_gradient(gradient: Tensor, kept: Sequence[bool], weight: float) -> Tensor:
    """``gradient`` (B, ...) of all scores, where the loss sees the kept ones alone."""
    rows = torch.tensor(kept, device=gradient.device)
    rows = rows.reshape([-1] + [1] * (gradient.dim() - 1) if gradient.dim() else [])
    return torch.where(rows, (gradient.double() * weight).to(gradient.dtype), 0.0)


def relative(part: float, whole: float) -> float:
    """``part / whole``, where nothing of nothing is 0, and NaN is as wrong as can be."""
    if part == 0:
        return 0.0
    return part / whole if whole and not math.isnan(part) else math.inf


def brief(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def norm2(tensor: Tensor) -> float:
    """Sum of the squares."""
    return float(tensor.double().square().sum())
