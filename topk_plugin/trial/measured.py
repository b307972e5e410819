"""All numbers of a trial: each is read once, and kept in the folder of its run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from topk_plugin.trial.metrics import Distance, Metric, NotMeasured, measure
from topk_plugin.trial.runs import Run, write_json

MEASURED = "metrics.json"
Values = dict[str, dict[str, dict[int, float]]]
"""Numbers by metric, arm and seed."""


class Measured(NamedTuple):
    """All numbers of a trial."""

    values: Values
    better: dict[str, str]  # by metric
    missing: list[tuple[Run, str, str]]  # what a run does not give: the metric, and why


def measured(runs: Sequence[Run], metrics: Sequence[Metric], distance: Distance) -> Measured:
    """The metrics of all runs that ended well, by names that differ where the metrics do."""
    numbers: dict[tuple[Metric, str], dict[str, dict[int, float]]] = {}
    missing: list[tuple[Run, str, str]] = []
    keys = {metric: metric.key() for metric in metrics}
    for run in runs:
        if not run.has_ended:
            continue
        file = run.folder / MEASURED
        kept = _kept(file)
        for metric, key in keys.items():
            if key not in kept:
                try:
                    kept[key] = measure(metric, run.out, run.seed, run.said_by_script(), distance)
                except NotMeasured as error:
                    missing.append((run, metric.spec, str(error)))
                    continue
                write_json(file, kept)
            for name, value in kept[key].items():
                arms = numbers.setdefault((metric, name), {})
                arms.setdefault(run.arm.name, {})[run.seed] = value
    often = Counter(name for _, name in numbers)
    found = Measured({}, {}, missing)
    for (metric, name), arms in numbers.items():
        shown = name if often[name] == 1 else f"{name} ({metric.text})"
        found.values[shown], found.better[shown] = arms, metric.better
    return found


def _kept(file: Path) -> dict[str, dict[str, float]]:
    """What was measured before; nothing where that cannot be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
