"""The section of Table 5: what gamma, nu, and top-k in the critic's loss do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from topk_plugin.reference.models import ABLATED
from topk_plugin.reference.report.arms import BASELINE, REFERENCE, gamma_and_nu, labels_of, role
from topk_plugin.reference.report.blocks import (
    CURVES,
    Block,
    Drawing,
    Table,
    listed,
    of_cell,
    proof,
    with_std,
)
from topk_plugin.reference.report.claims import ORDERS, ordered
from topk_plugin.reference.report.distances import Distances, distances, origin, sheet_drawings
from topk_plugin.reference.report.figures import ablation_figure, groups_figure
from topk_plugin.reference.report.folder import FAILED, Run, counted, left_out
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.statistics import (
    Paper,
    by_seed,
    paired_difference,
    summary,
    with_interval,
)

VARIED = {
    "gamma": "gamma: factor of k at each decay",
    "nu": "nu: smallest k, in parts of the batch",
    "whose loss": "in whose loss top-k is",
}
"""What Table 5's arms vary, and the axis of its figure."""

LOWER = "{}\n(lower is better)"


def table5(run: Run, paper: Paper) -> Iterator[Block]:
    """Distances by what an arm varies, beside the paper's."""
    for found in distances(run, paper):
        for cell in run.cells:
            yield ablation_table(run, found, cell)
            yield from origin(found)
            if run.preset != "smoke":  # after so few iterations a sign says nothing
                yield from _verdicts(run, found.ends, cell)
            yield from _ablation_drawings(run, found, cell)
    yield from proof(run, counted(run)[1])
    yield from sheet_drawings(run, "all")


def ablation_table(run: Run, found: Distances, cell: int) -> Table:
    """Table 5: an arm a line, with its paired differences from the baseline and the reference."""
    labels, body = labels_of(run), []
    of_arm = {arm: by_seed(found.ends, cell, arm) for arm in {*run.arms, BASELINE, REFERENCE}}
    for arm in run.arms:
        own, line, paired = of_arm[arm], [], []
        for other in (BASELINE, REFERENCE):
            difference = None if other == arm else paired_difference(of_arm[other], own)
            line.append("-" if difference is None else with_interval(difference, 2))
            if other != arm and of_arm[other]:
                paired.append(difference.n if difference else 0)
        seeds = str(len(own))
        if own and any(n != len(own) for n in paired):
            seeds += f"; {' and '.join(map(str, paired))} paired"
        number = found.paper.get(("fid", cell, arm))
        line = [labels.get(arm, arm), with_std(summary(own.values()), 2), *line, seeds]
        body.append([*line, "-" if number is None else f"{number:.2f}"])
    columns = ["arm", found.quantity, "from the baseline [95%]", f"from the {role(run)} [95%]"]
    title = f"{found.title}; {cell} pixels" if len(run.cells) > 1 else found.title
    return Table(title, [*columns, "seeds", "paper"], body)


def _verdicts(run: Run, ends: Mapping[Member, float], cell: int) -> Iterator[Block]:
    """What was seen beside what the paper says, as far as the run has its arms.

    Of another gamma or nu than the proposed ones the paper says nothing.
    """
    failed = Counter(
        member.arm
        for member, why in left_out(run).items()
        if member.cell == cell and why.startswith(FAILED)
    )
    lines = []
    for order in ORDERS if role(run) == "proposed" else ():
        if {order.arm, order.than} <= {*run.arms}:
            than, own = (by_seed(ends, cell, name) for name in (order.than, order.arm))
            difference = paired_difference(than, own)
            lines.append(ordered(order, difference, labels_of(run), failed))
    if lines:
        yield listed(lines)


def _ablation_drawings(run: Run, found: Distances, cell: int) -> Iterator[Block]:
    """Table 5's figure, and the learning curves, by what an arm varies."""
    ends = {member: value for member, value in found.ends.items() if member.cell == cell}
    ended = {member.arm for member in ends}
    panels = {what: ticks for what, ticks in _varied(run).items() if ended & {*ticks} - {REFERENCE}}
    if not panels:
        return
    name = f"table5{of_cell(run, cell)}"
    labels = labels_of(run)
    yield Drawing(
        f"{name}{found.suffix}",
        ablation_figure(
            LOWER.format(found.quantity),
            {VARIED[what]: ticks for what, ticks in panels.items()},
            ends,
            (BASELINE, REFERENCE),
            labels,
        ),
        "By what an arm varies: mean and standard deviation over seeds, and (small) the seeds; "
        "line and band: the baseline's mean and standard deviation.",
    )
    if curves := found.curves(cell):
        short = {**labels, BASELINE: "baseline", REFERENCE: role(run)}
        groups = {
            what: {
                short[arm]: arm
                for arm in (BASELINE, REFERENCE, *(arm for arm in ticks if arm != REFERENCE))
            }
            for what, ticks in panels.items()
        }
        yield Drawing(
            f"{name}-curves{found.suffix}",
            groups_figure(LOWER.format(found.quantity), curves, groups),
            CURVES,
        )


def _varied(run: Run) -> dict[str, dict[str, str]]:
    """For each of VARIED the run's arms, and for each of these its value in words."""
    gamma, nu = gamma_and_nu(run)
    arms = {name: arm for name, arm in ABLATED.items() if arm.topk and name in run.arms}
    gammas = {n: a.gamma or gamma for n, a in arms.items() if a.gamma or n == REFERENCE}
    nus = {n: a.nu or nu for n, a in arms.items() if a.nu or n == REFERENCE}
    same = {n: a for n, a in arms.items() if a.gamma is None and a.nu is None}
    return {
        "gamma": _ascending(gammas),
        "nu": _ascending(nus),
        "whose loss": {n: "both" if len(a.topk) > 1 else a.topk[0] for n, a in same.items()},
    }


def _ascending(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{values[name]:g}" for name in sorted(values, key=values.__getitem__)}
