"""Statistics over seeds: spreads and paired differences.

The functions take plain numbers, so that they also serve experiments of one's own:

>>> from topk_plugin.reference.statistics import paired_difference
>>> paired_difference({0: 81.0, 1: 79.0, 2: 80.0}, {0: 83.0, 1: 82.0, 2: 84.0}).mean
3.0

The paper's tables have no spread. Here an arm is given by its mean and standard deviation over
seeds, and top-k by its paired difference from the baseline, since both arms of a seed start from
the same weights and see the same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from topk_plugin.pairs import Summary, decimals, paired_difference, summary, with_interval
from topk_plugin.reference.experiments import SCHEDULES
from topk_plugin.reference.models import ARMS
from topk_plugin.reference.runs.records import Member

__all__ = [
    "Comparison",
    "Paper",
    "Summary",
    "by_seed",
    "compare",
    "decimals",
    "paired_difference",
    "summary",
    "with_interval",
    "without_topk",
]

Paper = Mapping[tuple[str, int, str], float]
"""The paper's numbers, by metric, cell and arm."""


class Comparison(NamedTuple):
    """One row of a table: an arm without and with top-k."""

    cell: int
    baseline_arm: str
    topk_arm: str
    baseline: Summary | None  # None where no such member has finished
    topk: Summary | None
    difference: Summary | None
    paper: tuple[float | None, float | None]  # baseline, top-k


def compare(
    values: Mapping[Member, float],
    cells: Iterable[int],
    arms: Sequence[str],
    metric: str,
    paper: Paper,
) -> list[Comparison]:
    """For each cell and each baseline of the arms, the comparison with each of its top-k arms.

    Args:
        values: one number a member.
        cells, arms: what the rows are, in this order. Several may have one baseline; one that has
            none of them is put beside the arm that it would have: "top-k+NAME" of NAME, "top-k" of
            "gan".
        metric: of these numbers, as it is called in ``paper``.
        paper: the paper's numbers, where it has some.
    """
    rows = []
    for cell in cells:
        for base in dict.fromkeys(map(without_topk, arms)):
            usual = "top-k" if base == "gan" else f"top-k+{base}"
            own = [arm for arm in arms if arm != base and without_topk(arm) == base]
            for topk in own or [usual]:
                plain, gated = (by_seed(values, cell, arm) for arm in (base, topk))
                rows.append(
                    Comparison(
                        cell,
                        base,
                        topk,
                        summary(plain.values()),
                        summary(gated.values()),
                        paired_difference(plain, gated),
                        (paper.get((metric, cell, base)), paper.get((metric, cell, topk))),
                    )
                )
    return rows


def by_seed(values: Mapping[Member, float], cell: int, arm: str) -> dict[int, float]:
    """The numbers of an arm's seeds."""
    return {m.seed: value for m, value in values.items() if m[:2] == (cell, arm)}


def without_topk(arm: str) -> str:
    """The baseline of a top-k arm, which several may have; a baseline itself."""
    if arm in ARMS:
        return ARMS[arm].model
    return "gan" if arm in SCHEDULES else arm.removeprefix("top-k+")
