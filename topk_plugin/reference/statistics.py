"""Statistics over seeds: spreads, paired differences, and what the paper's claims come to.

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
from topk_plugin.reference.runs.records import Member, Row

Paper = Mapping[tuple[str, int, str], float]
"""The paper's numbers, by metric, cell and arm."""

BINS = ("0–1", "1–2", "2–3", "3–4", "> 4")
"""Distances to the nearest mode, in std, of Figures 2 and 3."""


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


class Order(NamedTuple):
    """Which of two arms of Table 5 the paper (section 6, Tables 3 and 5) has as the worse one."""

    arm: str
    than: str
    worse: bool


ORDERS = (
    Order("critic", "top-k+sagan", worse=True),
    Order("both", "top-k+sagan", worse=True),
    Order("gamma=0.5", "top-k+sagan", worse=True),
    Order("nu=0.9", "top-k+sagan", worse=True),
    Order("top-k+sagan", "sagan", worse=False),
)


def ordered(
    order: Order,
    difference: Summary | None,
    labels: Mapping[str, str],
    failed: Mapping[str, int],
) -> str:
    """One sentence on whether a distance's paired difference has the sign that the paper gives it.

    Args:
        order: the paper's.
        difference: of the arm from the other one, by :func:`paired_difference`; above 0 is worse.
        labels: the arms in words.
        failed: by arm, how many of its seeds diverged, so that they have no distance.
    """
    gone = "".join(
        f" {n} seed{'s' * (n != 1)} of {labels[arm]} diverged (not finite) and "
        f"{'are' if n != 1 else 'is'} not in it."
        for arm in (order.arm, order.than)
        if (n := failed.get(arm))
    )
    than = "worse" if order.worse else "better"
    what = f"in the paper {labels[order.arm]} is {than} than {labels[order.than]}"
    if difference is None:
        return f"{what}: not decided here, since no seed has a distance of both.{gone}"
    if difference.interval is None:
        found = "not decided here, since one seed has no interval"
    elif difference.interval[0] <= 0 <= difference.interval[1]:
        found = "not decided here, since the 95% interval includes 0"
    else:
        found = f"this run {'agrees' if (difference.mean > 0) == order.worse else 'disagrees'}"
    seeds = f"{difference.n} seed{'s' * (difference.n != 1)}"
    return f"{what}: {found} ({with_interval(difference, 2)}, {seeds}).{gone}"


# --- the movement by one update -----------------------------------------------------------------


def movement(rows: Iterable[Row], quantity: str) -> dict[tuple[str, int], Summary]:
    """Figures 2 and 3: for each update and bin of distance, the seeds' means in short.

    Args:
        rows: of kind "movement": update, bin, count, and the quantity's mean over the samples in
            the bin. A seed without a sample there says nothing of the bin.
        quantity: "cosine" (to the direction of the nearest mode) or "change" (of the distance to
            it, in std).
    """
    seeds: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["count"]:
            seeds.setdefault((row["update"], row["bin"]), []).append(row[quantity])
    found = {key: summary(numbers) for key, numbers in seeds.items()}
    return {key: known for key, known in found.items() if known}


def contrast(rows: Iterable[Row], quantity: str) -> dict[int, Summary]:
    """For each bin, the mean of the top-k update less that of the bottom-k update, seed by seed.

    Args: see :func:`movement`.
    """
    means: dict[tuple[str, int], dict[Any, float]] = {}
    for row in rows:
        if row["count"]:
            seed = row["cell"], row["seed"]
            means.setdefault((row["update"], row["bin"]), {})[seed] = row[quantity]
    found = {
        number: paired_difference(means.get(("bottom-k", number), {}), of_top)
        for (update, number), of_top in means.items()
        if update == "top-k"
    }
    return {number: known for number, known in found.items() if known}


class Claim(NamedTuple):
    """What the paper (section 4.3) says of the sign of a movement."""

    update: str
    quantity: str
    sign: int
    bins: Sequence[int]


CLAIMS = (
    Claim("bottom-k", "cosine", -1, range(5)),
    Claim("top-k", "cosine", 1, (4,)),
    Claim("bottom-k", "change", 1, range(5)),
    Claim("top-k", "change", -1, (4,)),
)
QUANTITIES = {"cosine": "mean cosine", "change": "mean change of distance"}


def verdict(claim: Claim, found: Mapping[tuple[str, int], Summary]) -> str:
    """One sentence on whether the measured means have the sign that the paper gives them.

    Args:
        claim: the paper's.
        found: as :func:`movement` gives it for the claim's quantity.
    """
    points = {b: found[claim.update, b] for b in claim.bins if (claim.update, b) in found}
    what = f"{claim.update}: the {QUANTITIES[claim.quantity]}"
    if not points:
        return f"{what} is unknown, since no sample lies in these bins."
    side = "negative" if claim.sign < 0 else "positive"
    unsure = [b for b, p in points.items() if p.interval and p.interval[0] <= 0 <= p.interval[1]]
    holds = [b for b, point in points.items() if point.mean * claim.sign > 0]
    if not holds:
        where, agrees = f"not {side} {in_bins(list(points))}", "unlike the paper"
    elif len(holds) < len(points):
        where, agrees = f"{side} only {in_bins(holds)}", "in part unlike the paper"
    else:
        where, agrees = f"{side} {in_bins(holds)}", "as the paper says"
    if len(unsure) == len(points):
        agrees = "which decides nothing"
    elif unsure:
        agrees += " as far as it is decided"
    n = sorted({point.n for point in points.values()})
    notes = [f"{' or '.join(map(str, n))} seed{'s' * (n != [1])}"]
    if n == [1]:
        notes.append("no interval")
    elif unsure:
        notes.append(f"the 95% interval includes 0 {in_bins(unsure)}")
    digits = decimals(points.values())
    known = ", ".join(f"{BINS[b]}: {with_interval(p, digits)}" for b, p in points.items())
    return f"{what} is {where}, {agrees} ({known}; {', '.join(notes)})."


def in_bins(numbers: Sequence[int]) -> str:
    """Bins by their distances."""
    return f"in the bin{'s' * (len(numbers) > 1)} {', '.join(BINS[b] for b in numbers)} std"


def decimals(points: Iterable[Summary]) -> int:
    """Digits after the point that give the largest mean two digits, and others at least two."""
    largest = max((abs(point.mean) for point in points), default=0.0)
    return 2 if largest == 0 else max(2, 1 - math.floor(math.log10(largest)))


def with_interval(found: Summary, digits: int) -> str:
    """A signed mean with its 95% interval, where it has one."""
    numbers = [found.mean, *(found.interval or ())]
    mean, *ends = [f"{number:+z.{digits}f}" for number in numbers]  # z: no -0.0
    return f"{mean} [{', '.join(ends)}]" if ends else mean
