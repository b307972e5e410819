"""What the paper claims of signs and orders, and whether a run agrees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from topk_plugin.reference.mixture.modes import BINS
from topk_plugin.reference.runs.records import Row
from topk_plugin.reference.statistics import (
    Summary,
    decimals,
    paired_difference,
    summary,
    with_interval,
)


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
    Claim("bottom-k", "cosine", -1, range(len(BINS))),
    Claim("top-k", "cosine", 1, (4,)),
    Claim("bottom-k", "change", 1, range(len(BINS))),
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
