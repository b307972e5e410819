"""What a trial found, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from topk_plugin.extras import needed
from topk_plugin.pairs import (
    Summary,
    decimals,
    paired_difference,
    summary,
    telling,
    with_interval,
)
from topk_plugin.trial.arms import PLAIN

POWER = 0.8
"""The share of trials in which as many seeds as are advised tell a difference, at 95%."""

NORMAL = 1.96 + 0.8416
"""Standard errors at which that is so of many seeds; of few it takes more."""

MOST_SEEDS = 1_000_000


class Outcome(NamedTuple):
    """One metric in one arm, against the same seeds without top-k."""

    metric: str
    better: str  # "higher", "lower", or "" where nobody said
    arm: str
    plain: Mapping[int, float]  # by seed
    topk: Mapping[int, float]
    difference: Summary | None  # top-k minus plain; None: no seed has both
    alike: bool = False  # more seeds would be the same again
    unchanged: bool = False  # every metric of the arm is the same with and without top-k

    @property
    def equal(self) -> bool:
        """The same number in each pair."""
        return all(plain == topk for plain, topk in self.pairs)

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Of the seeds that have both."""
        return [(self.plain[seed], self.topk[seed]) for seed in self.seeds]

    @property
    def seeds(self) -> list[int]:
        """That have both."""
        return sorted(self.plain.keys() & self.topk.keys())

    @property
    def same_side(self) -> int:
        """Pairs whose difference has the sign of the mean's."""
        assert self.difference is not None  # only asked where there is one
        sign = self.difference.mean
        return sum((topk - plain) * sign > 0 for plain, topk in self.pairs)


def outcomes(
    values: Mapping[str, Mapping[str, Mapping[int, float]]],
    better: Mapping[str, str],
    alike: bool = False,
) -> list[Outcome]:
    """Each metric's, arm by arm.

    Args:
        values: by metric, arm and seed.
        better: by metric.
        alike: more seeds would be the same again.
    """
    found = []
    for metric, arms in values.items():
        plain = arms.get(PLAIN, {})
        for arm, topk in arms.items():
            if arm != PLAIN:
                difference = paired_difference(plain, topk)
                found.append(Outcome(metric, better[metric], arm, plain, topk, difference, alike))
    changed = {outcome.arm for outcome in found if not outcome.equal}
    return [outcome._replace(unchanged=outcome.arm not in changed) for outcome in found]


def ratio(plain: Mapping[int, float], topk: Mapping[int, float]) -> Summary | None:
    """Of seconds or bytes, top-k over plain, over the seeds that both have.

    The geometric mean, and its interval: no ratio is below 0.
    """
    found = summary(math.log(topk[seed] / plain[seed]) for seed in topk if plain.get(seed))
    if found is None:
        return None
    ends = found.interval and (math.exp(found.interval[0]), math.exp(found.interval[1]))
    return Summary(found.n, math.exp(found.mean), None, ends)


def sentence(outcome: Outcome) -> str:
    """What can be said of it, plainly."""
    name, found = outcome.metric, outcome.difference
    if found is None:
        return f"{name}: no seed has a number without and with top-k."
    if outcome.equal:
        nothing = "each difference is exactly 0: top-k changed nothing"
        said = nothing if outcome.unchanged else "this number is the same in each pair"
        return f"{name}: {_seeds(found.n)}, and {said}."
    digits = telling(found, decimals([found]))
    shown = f"{abs(found.mean):.{digits}f}"
    side = "lower" if found.mean < 0 else "higher"
    if found.interval is None:
        more = "" if outcome.alike else "; give more (--seeds)"
        return (
            f"{name}: top-k is {side} by {shown} in one seed, which cannot tell it from "
            f"chance{more}."
        )
    low, high = found.interval
    if low > 0 or high < 0:
        ends = sorted(abs(end) for end in (low, high))
        judged = ""
        if outcome.better:
            judged = ", which is better" if side == outcome.better else ", which is worse"
        return (
            f"{name}: top-k is {side} by {shown} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}] in "
            f"{outcome.same_side} of {found.n} seeds{judged}."
        )
    enough = seeds_for(found)
    more = f"more than {MOST_SEEDS:,}" if enough is None else f"about {enough:,}"
    advice = f"; {more} would tell a difference of {shown}" if found.mean else ""
    return (
        f"{name}: {_seeds(found.n)} cannot tell: the difference is "
        f"{with_interval(found, digits)}{advice}."
    )


def seeds_for(found: Summary) -> int | None:
    """Seeds that tell a difference of the mean that was found, in four trials of five.

    More than were given, and by the paired t test's own power; None: over a million.
    """
    assert found.std is not None  # of several
    size = abs(found.mean) / found.std
    if size == 0 or (NORMAL / size) ** 2 > MOST_SEEDS:
        return None
    n = max(found.n + 1, math.ceil((NORMAL / size) ** 2))
    while _power(size, n) < POWER:
        n += 1
    return n


def _power(size: float, n: int) -> float:
    """Of the two-sided paired t test at 5%: Student's t, noncentral by the difference.

    Args:
        size: of the mean difference, in standard deviations of the differences.
    """
    stats = needed("scipy.stats")
    edge, shift = stats.t.ppf(0.975, n - 1), size * math.sqrt(n)
    return float(stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift))


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n != 1)}"
