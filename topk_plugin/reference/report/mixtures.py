"""The sections of Table 1, of its study, and of Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from topk_plugin.reference.mixture.modes import BINS
from topk_plugin.reference.report.arms import span
from topk_plugin.reference.report.blocks import (
    CURVES,
    METRICS,
    Block,
    Drawing,
    Table,
    comparison_table,
    listed,
    proof,
)
from topk_plugin.reference.report.claims import CLAIMS, contrast, movement, verdict
from topk_plugin.reference.report.figures import curves_figure
from topk_plugin.reference.report.folder import Run, at_the_end, counted, of_kind, series, setting
from topk_plugin.reference.report.mixture_figures import (
    Point,
    approach,
    arrows_figure,
    grid,
    movement_figure,
    samples_figure,
)
from topk_plugin.reference.report.schedules import schedules
from topk_plugin.reference.runs.records import Row
from topk_plugin.reference.statistics import (
    Paper,
    Summary,
    compare,
    decimals,
    with_interval,
    without_topk,
)


def movement_table(
    title: str,
    found: Mapping[tuple[str, int], Summary],
    updates: Sequence[str],
    differences: Mapping[int, Summary],
) -> Table:
    """Means with their 95% intervals by distance to the nearest mode, one column an update.

    Args:
        differences: of top-k and bottom-k, over the same seeds, by bin.
    """
    digits, body = decimals(found.values()), []
    for number, name in enumerate(BINS):
        points = [found.get((update, number)) for update in updates]
        seeds = span(point.n if point else 0 for point in points)
        points.append(differences.get(number))
        body.append([name, *(with_interval(p, digits) if p else "-" for p in points), seeds])
    return Table(title, ["distance (std)", *updates, "top-k - bottom-k", "seeds"], body)


def mixtures(run: Run, paper: Paper) -> Iterator[Block]:
    """What is reported of GANs on mixtures: Table 1's pair of arms, or several schedules."""
    return table1(run, paper) if {*run.arms} <= {"gan", "top-k"} else schedules(run, paper)


def table1(run: Run, paper: Paper) -> Iterator[Block]:
    """Coverage of the modes, beside the paper's."""
    rows, final = counted(run)
    names = ("high_quality", "modes")
    for name in names:
        label, digits = METRICS[name]
        compared = compare(at_the_end(series(final, name)), run.cells, run.arms, name, paper)
        yield comparison_table(label, compared, "modes", digits)
    yield from proof(run, final)
    if not final:
        return
    yield Drawing(
        "table1",
        curves_figure({METRICS[name].label: series(rows, name) for name in names}, "modes"),
        CURVES,
    )
    drawn = sorted(of_kind(final, "samples"), key=lambda row: -row["seed"])
    if drawn:  # of the lowest seed
        points = {(row["cell"], row["arm"]): row["points"] for row in drawn}
        yield Drawing(
            "samples",
            samples_figure(points, setting(run, "spacing"), setting(run, "std")),
            "Samples of one seed; circles: 4 std around the modes.",
        )


def study(run: Run, paper: Paper) -> Iterator[Block]:
    """Variants of the baseline, by how near they are to the paper's, and top-k under each."""
    final = counted(run)[1]
    gated = [arm for arm in run.arms if without_topk(arm) != arm]
    plain = [row for row in of_kind(final, "score") if row["arm"] not in gated]
    yield study_table(plain, run.cells, paper)
    yield (
        "Percent of high-quality samples and of modes recovered, by number of modes; means over "
        "seeds. Distance: the mean over a row's numbers of how far they are from the "
        "paper's baseline, in percentage points. The variant that is nearest is the default."
    )
    if gated:
        arms = [arm for pair in gated for arm in (without_topk(pair), pair)]
        for name in ("high_quality", "modes"):
            label, digits = METRICS[name]
            compared = compare(at_the_end(series(final, name)), run.cells, arms, name, paper)
            yield comparison_table(label, compared, "modes", digits)
        yield from proof(run, final)


def study_table(rows: Sequence[Row], cells: Sequence[int], paper: Paper) -> Table:
    """Table 1's metrics of each variant (arm), the nearest to the paper's baseline first."""
    names = ("high_quality", "modes")
    wanted = [paper[name, cell, "gan"] for cell in cells for name in names]
    found: dict[str, list[float]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        if not {*cells} <= {row["cell"] for row in of_arm}:
            continue  # not all of it has ended
        found[arm] = [
            fmean(row[name] for row in of_arm if row["cell"] == cell)
            for cell in cells
            for name in names
        ]
    distances = {
        arm: fmean(abs(a - b) for a, b in zip(values, wanted, strict=True))
        for arm, values in found.items()
    }
    columns = ["variant", "distance"]
    columns += [f"{cell}: {what}" for cell in cells for what in ("quality", "modes")]
    lines = [["paper", "", *(f"{value:.1f}" for value in wanted)]]
    for arm in sorted(found, key=distances.__getitem__):
        lines.append([arm, f"{distances[arm]:.1f}", *(f"{value:.1f}" for value in found[arm])])
    return Table("the baseline, by variant", columns, lines)


def probe(run: Run, paper: Paper) -> Iterator[Block]:
    """How one update moves samples, beside what the paper says."""
    final = counted(run)[1]
    for cell in run.cells:
        several = len(run.cells) > 1
        rows = [row for row in final if row["cell"] == cell]
        of_cell, suffix = (f", {cell} modes", f"-{cell}") if several else ("", "")
        yield from _movement(of_kind(rows, "movement"), of_cell, suffix, run.preset == "smoke")
        arrows = {}
        for row in sorted(of_kind(rows, "arrows"), key=lambda row: -row["seed"]):
            arrows[row["update"]] = row["points"]  # the lowest seed's
        points = {update: arrows[update] for update in ("bottom-k", "top-k") if update in arrows}
        if points:
            spacing, std = setting(run, "spacing"), setting(run, "std")
            yield Drawing(
                f"figure4{suffix}",
                arrows_figure(points, cell, spacing, std),
                f"Figure 4: movement of samples by one update{of_cell}, of one seed; circles: "
                "4 std around the modes.",
            )
            yield listed([directions(points, grid(cell, spacing))])


def _movement(rows: Sequence[Row], of_cell: str, suffix: str, smoke: bool) -> Iterator[Block]:
    labels = {
        "cosine": "mean cosine between movement\nand direction to the nearest mode",
        "change": "mean change of distance\nto the nearest mode (std)",
    }
    for number, (name, label) in enumerate(labels.items(), start=2):
        found = movement(rows, name)
        if not found:
            continue
        title = f"Figure {number}: {' '.join(label.split())}, after one update{of_cell}"
        updates = [u for u in ("top-k", "bottom-k", "all") if any(u == key[0] for key in found)]
        yield movement_table(title, found, updates, contrast(rows, name))
        yield Drawing(
            f"figure{number}{suffix}",
            movement_figure(found, label, ["top-k", "bottom-k"]),
            f"{title}. Whiskers: one standard deviation over seeds.",
        )
        if not smoke:  # after so few iterations a sign says nothing
            yield listed(verdict(claim, found) for claim in CLAIMS if claim.quantity == name)


def directions(points: Mapping[str, Sequence[Sequence[float]]], centers: Sequence[Point]) -> str:
    """One sentence: how many drawn samples (N, 4) each update moves away from their modes."""
    parts = []
    for update, drawn in points.items():
        away = sum(approach(arrow, centers) < 0 for arrow in drawn)
        parts.append(f"{update} {away} of {len(drawn)}")
    return f"Drawn samples that move away from the nearest mode: {', '.join(parts)}."
