"""The section of the schedules: where in training, and by how much, each is ahead of the GAN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from topk_plugin.reference.report.arms import ARMS
from topk_plugin.reference.report.blocks import (
    CURVES,
    METRICS,
    Block,
    Drawing,
    Table,
    listed,
    proof,
    with_std,
)
from topk_plugin.reference.report.figures import curves_figure
from topk_plugin.reference.report.folder import Run, at_the_end, counted, series
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.statistics import (
    Paper,
    Summary,
    by_seed,
    paired_difference,
    summary,
    with_interval,
)

NAMES = ("high_quality", "modes")
COLUMNS = 10
"""Iterations that a table over training has, at most."""


def schedules(run: Run, paper: Paper) -> Iterator[Block]:
    """Each schedule beside the GAN and beside the paper's: at the end, and over training."""
    rows, final = counted(run)
    curves = {name: series(rows, name) for name in NAMES}
    for cell in run.cells:
        for name in NAMES:
            yield end_table(run, name, at_the_end(curves[name]), cell, paper)
        for name in NAMES:
            yield lead_table(run, name, curves[name], cell)
        if run.preset != "smoke":  # after so few iterations a sign says nothing
            yield listed(_verdicts(run, at_the_end(curves["high_quality"]), cell))
    yield from proof(run, final)
    if final:
        panels = {METRICS[name].label: curve for name, curve in curves.items()}
        yield Drawing("schedules", curves_figure(panels, "modes"), CURVES)


def end_table(run: Run, name: str, ends: Mapping[Member, float], cell: int, paper: Paper) -> Table:
    """An arm a line: mean and standard deviation over seeds, and its paired differences."""
    label, digits = METRICS[name]
    of_arm = {arm: by_seed(ends, cell, arm) for arm in {*run.arms, "gan", "top-k"}}
    body = []
    for arm in run.arms:
        line = [ARMS.get(arm, arm), with_std(summary(of_arm[arm].values()), digits)]
        for other in ("gan", "top-k"):
            found = None if arm in (other, "gan") else paired_difference(of_arm[other], of_arm[arm])
            line.append("-" if found is None else with_interval(found, digits))
        better = [of_arm[arm][s] > of_arm["gan"][s] for s in of_arm[arm] if s in of_arm["gan"]]
        line.append("-" if arm == "gan" else f"{sum(better)} of {len(better)}")
        number = paper.get((name, cell, arm))
        body.append([*line, "-" if number is None else f"{number:.{digits}f}"])
    columns = ["arm", label, "from the GAN [95%]", "from the paper's schedule [95%]"]
    title = f"{label}, {cell} modes, at the end"
    return Table(title, [*columns, "seeds above the GAN", "paper"], body)


def lead_table(run: Run, name: str, curve: Mapping[tuple[Member, int], float], cell: int) -> Table:
    """By iteration: the GAN's mean, and each arm's paired difference from it."""
    label, digits = METRICS[name]
    every = sorted({iteration for _, iteration in curve})
    # the last one is always there
    shown = every[:: -max(1, -(-len(every) // COLUMNS))][::-1]
    at = {
        iteration: {member: v for (member, i), v in curve.items() if i == iteration}
        for iteration in shown
    }
    body = []
    for arm in run.arms:
        line = []
        for values in at.values():
            plain, own = by_seed(values, cell, "gan"), by_seed(values, cell, arm)
            if arm == "gan":
                line.append(with_std(summary(plain.values()), digits))
            else:
                found = paired_difference(plain, own)
                line.append("-" if found is None else with_interval(found, digits))
        body.append([ARMS.get(arm, arm), *line])
    title = f"{label}, {cell} modes, over training: the GAN's, and differences from it [95%]"
    return Table(title, ["arm", *(f"{iteration:,}" for iteration in shown)], body)


def _verdicts(run: Run, ends: Mapping[Member, float], cell: int) -> Iterator[str]:
    """Whether each schedule ends ahead of the GAN."""
    plain = by_seed(ends, cell, "gan")
    for arm in run.arms:
        found = None if arm == "gan" else paired_difference(plain, by_seed(ends, cell, arm))
        if found is not None:
            yield f"{ARMS.get(arm, arm)}: {_standing(found)}"


def _standing(found: Summary) -> str:
    by = f"{with_interval(found, METRICS['high_quality'].digits)}, {found.n} seeds"
    if found.interval is None or found.interval[0] <= 0 <= found.interval[1]:
        return f"whether it ends ahead of the GAN in high-quality samples is open ({by})"
    place = "ahead of" if found.mean > 0 else "behind"
    return f"it ends {place} the GAN in high-quality samples ({by})"
