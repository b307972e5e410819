"""What happened in some generator steps, in numbers: a pure function of their selections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.choice import (
    CALLS,
    DROPPED_SUM,
    KEPT,
    KEPT_SUM,
    NONFINITE,
    ROWS,
    TALLY_SIZE,
    THRESHOLD,
)
from topk_plugin.hooks import Selection

BINS = 30
"""Of a histogram."""


class Kept(NamedTuple):
    """Of the rows of one class."""

    rows: int  # at least 1
    kept: int  # of them

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.kept / self.rows


class Histogram(NamedTuple):
    """Of scores that are finite."""

    edges: list[float]  # BINS + 1, ascending
    kept: list[int]  # rows in each bin, the last edge included
    dropped: list[int]  # the same


class Figures(NamedTuple):
    """Of some generator steps of one training, as numbers on the host; means are over rows.

    A mean of no rows, or of scores that are not all finite, is NaN.
    """

    step: int  # the last of them
    epoch: int  # ended epochs while it ran
    training: int  # of how many in this process
    batch: float  # rows of a critic call, mean
    k: float  # rows of a call that were kept, mean
    threshold: float  # score of the worst row kept in a call, mean
    kept_score: float  # mean
    dropped_score: float  # mean
    nonfinite: int  # scores that were NaN or infinite
    # None where no score was finite, or none was seen: steps that were compiled or replayed
    histogram: Histogram | None
    classes: dict[int, Kept]  # by label; empty where none is known

    @property
    def starved(self) -> int:
        """Classes that had rows, and kept none."""
        return sum(not one.kept for one in self.classes.values())


def figures(selections: Sequence[Selection]) -> Figures:
    """What happened in generator steps of one training (the device is waited for, once or twice).

    Args:
        selections: in order, one at least.
    """
    last = selections[-1]
    device = last.tally.device
    tally = torch.stack([one.tally.to(device) for one in selections]).sum(dim=0)
    calls = [call for one in selections for call in one.calls]
    parts, labels = [tally], None
    if calls:
        scores = torch.cat([call.scores.to(device, torch.float64) for call in calls])
        kept = torch.cat([call.kept.to(device) for call in calls])
        parts.append(_counted(scores, kept))
    known = [call for call in calls if call.labels is not None]
    if known:
        of_rows = torch.cat([call.labels.to(device) for call in known if call.labels is not None])
        labels, place = of_rows.unique(return_inverse=True)
        kept = torch.cat([call.kept.to(device) for call in known])
        rows = torch.zeros(2, len(labels), dtype=torch.float64, device=device)
        rows[0].index_add_(0, place, torch.ones_like(kept, dtype=torch.float64))
        rows[1].index_add_(0, place, kept.double())
        parts += [labels.double(), rows.flatten()]
    numbers = torch.cat(parts).tolist()
    histogram = _histogram(numbers[TALLY_SIZE:]) if calls else None
    rest = numbers[len(numbers) - 3 * len(labels) :] if labels is not None else []
    size = len(rest) // 3
    classes = {
        int(label): Kept(int(all_), int(some))
        for label, all_, some in zip(
            rest[:size], rest[size : 2 * size], rest[2 * size :], strict=True
        )
    }
    rows_, kept_, calls_ = numbers[ROWS], numbers[KEPT], numbers[CALLS]
    return Figures(
        last.step, last.epoch, last.training, _mean(rows_, calls_), _mean(kept_, calls_),
        _mean(numbers[THRESHOLD], calls_), _mean(numbers[KEPT_SUM], kept_),
        _mean(numbers[DROPPED_SUM], rows_ - kept_), int(numbers[NONFINITE]), histogram, classes,
    )  # fmt: skip


def _mean(total: float, count: float) -> float:
    return total / count if count else float("nan")


def _counted(scores: Tensor, kept: Tensor) -> Tensor:
    """Least and greatest of ``scores`` (N,), and how many are kept and dropped in each bin.

    (2 + 2 BINS,) float64; scores that are not finite are left out.
    """
    finite = scores.isfinite()
    low = scores.masked_fill(~finite, torch.inf).min()
    high = scores.masked_fill(~finite, -torch.inf).max()
    high = torch.where(high > low, high, low + 1)
    width = (high - low) / BINS
    place = ((scores - low) / width).nan_to_num(0.0).clamp(0, BINS - 1).long()
    counts = torch.zeros(2 * BINS, dtype=torch.float64, device=scores.device)
    counts.index_add_(0, place + BINS * ~kept, finite.double())
    return torch.cat([low[None], high[None], counts])


def _histogram(numbers: Sequence[float]) -> Histogram | None:
    low, high, *counts = numbers[: 2 + 2 * BINS]
    if math.isinf(low):  # no score was finite
        return None
    edges = [low + (high - low) * place / BINS for place in range(BINS)] + [high]
    kept, dropped = ([int(n) for n in part] for part in (counts[:BINS], counts[BINS:]))
    return Histogram(edges, kept, dropped)
