"""Whether the seeds of a trial are several, or one: a script may seed itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from topk_plugin.errors import ConfigError
from topk_plugin.trial.runs import LOG, Run
from topk_plugin.trial.steps import read_log

STEPS = 10
"""Generator steps whose scores tell the seeds of an arm apart: the first may be of a critic that
gives every sample the same."""

Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Numbers by metric, arm and seed."""


def alike(
    values: Values, begins: Mapping[str, Mapping[int, Hashable]]
) -> Literal["", "began", "ended"]:
    """How the seeds show that they are one; "" where they are several.

    Where it is known how runs began, that decides: a metric that counts may well be the same in all
    seeds. Elsewhere an arm does, of which every metric is the same number in all seeds.

    Args:
        begins: how runs began, by arm and seed.
    """
    starts = [set(of.values()) for of in begins.values() if len(of) > 1]
    if starts:
        return "began" if all(len(different) == 1 for different in starts) else ""
    for arm in {arm for arms in values.values() for arm in arms}:
        numbers = [arms[arm] for arms in values.values() if arm in arms]
        several = any(len(of) > 1 for of in numbers)
        if several and all(len(set(of.values())) == 1 for of in numbers):
            return "ended"
    return ""


def beginnings(runs: Sequence[Run]) -> dict[str, dict[int, Hashable]]:
    """The scores of the first generator steps, by arm and seed, of runs that have a log of them."""
    found: dict[str, dict[int, Hashable]] = {}
    for run in runs:
        if not run.has_ended:
            continue
        try:
            records = read_log(run.folder / LOG)[:STEPS]
        except ConfigError:  # none: no step of this process was gated, or the arm is the plain one
            continue
        scores = tuple((row["kept_score"], row.get("threshold")) for row in records)
        found.setdefault(run.arm.name, {})[run.seed] = scores
    return found


def of_one_seed(values: Values) -> dict[str, dict[str, dict[int, float]]]:
    """Of each metric the numbers of the first seed that all its arms have."""
    first = {
        metric: min(set.intersection(*(set(of) for of in arms.values())), default=None)
        for metric, arms in values.items()
    }
    return {
        metric: {
            arm: {seed: value for seed, value in of.items() if seed == first[metric]}
            for arm, of in arms.items()
        }
        for metric, arms in values.items()
    }
