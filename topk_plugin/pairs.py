"""Statistics over seeds: spreads and paired differences, of plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from topk_plugin.extras import needed


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


def decimals(points: Iterable[Summary]) -> int:
    """Digits after the point that give the largest mean two digits, and others at least two."""
    largest = max((abs(point.mean) for point in points), default=0.0)
    return 2 if largest == 0 else max(2, 1 - math.floor(math.log10(largest)))


def telling(found: Summary, digits: int) -> int:
    """As many digits, or more: until an end of the interval that is not 0 shows its sign."""
    ends = [end for end in found.interval or () if end]
    while any(round(end, digits) == 0 for end in ends):
        digits += 1
    return digits


def with_interval(found: Summary, digits: int) -> str:
    """A signed mean with its 95% interval, where it has one."""
    numbers = [found.mean, *(found.interval or ())]
    mean, *ends = [f"{number:+z.{digits}f}" for number in numbers]  # z: no -0.0
    return f"{mean} [{', '.join(ends)}]" if ends else mean
