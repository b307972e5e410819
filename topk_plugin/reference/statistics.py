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

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from topk_plugin.reference.extras import needed
from topk_plugin.reference.models import ARMS
from topk_plugin.reference.runs.records import Member

Paper = Mapping[tuple[str, int, str], float]
"""The paper's numbers, by metric, cell and arm."""


class Summary(NamedTuple):
    """Numbers of several seeds in short."""

    n: int
    mean: float
    std: float | None  # over n - 1; None for one number
    interval: tuple[float, float] | None  # 95%, of the mean, by Student's t; None for one number


def summary(values: Iterable[float]) -> Summary | None:
    """Mean, standard deviation and the mean's 95% interval; None without a number."""
    numbers = list(values)
    if len(numbers) < 2:
        return Summary(1, numbers[0], None, None) if numbers else None
    n, mean, std = len(numbers), statistics.mean(numbers), statistics.stdev(numbers)
    half = float(needed("scipy.stats").t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half, mean + half))


def paired_difference(baseline: Mapping[Any, float], topk: Mapping[Any, float]) -> Summary | None:
    """Top-k minus baseline over the seeds that both have; None where they have none in common.

    One pair gives a difference without an interval.
    """
    return summary(topk[seed] - baseline[seed] for seed in topk if seed in baseline)


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
    return "gan" if arm == "top-k" else arm.removeprefix("top-k+")


def decimals(points: Iterable[Summary]) -> int:
    """Digits after the point that give the largest mean two digits, and others at least two."""
    largest = max((abs(point.mean) for point in points), default=0.0)
    return 2 if largest == 0 else max(2, 1 - math.floor(math.log10(largest)))


def with_interval(found: Summary, digits: int) -> str:
    """A signed mean with its 95% interval, where it has one."""
    numbers = [found.mean, *(found.interval or ())]
    mean, *ends = [f"{number:+z.{digits}f}" for number in numbers]  # z: no -0.0
    return f"{mean} [{', '.join(ends)}]" if ends else mean
