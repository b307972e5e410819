"""The section of Table 2."""

from __future__ import annotations

from collections.abc import Iterator

from topk_plugin.reference.report.arms import in_pairs
from topk_plugin.reference.report.blocks import (
    CURVES,
    METRICS,
    Block,
    Drawing,
    comparison_table,
    proof,
)
from topk_plugin.reference.report.figures import curves_figure, points_figure
from topk_plugin.reference.report.folder import (
    Run,
    at_the_end,
    counted,
    member_of,
    of_kind,
    series,
)
from topk_plugin.reference.statistics import Paper, compare


def table2(run: Run, paper: Paper) -> Iterator[Block]:
    """Areas by held-out digit and score, beside the paper's."""
    rows, final = counted(run)
    scored = sorted(of_kind(run.rows, "score"), key=lambda row: run.arms.index(row["arm"]))
    chance = {row["cell"]: row["chance"] for row in scored if "chance" in row}
    arms = {  # a score is one method's, or several methods have it
        score: in_pairs(member_of(row) for row in scored if row["score"] == score)
        for score in dict.fromkeys(row["score"] for row in scored)
    }
    if run.settings.get("dataset") != "mnist":
        paper = {}
    for score, of_score in arms.items():
        for name in ("average_precision", "trapezoid"):
            label, digits = METRICS[name]
            values = at_the_end(series(final, name, score))
            compared = compare(values, run.cells, of_score, name, paper)
            title = f"{label}, score: {score}"
            yield comparison_table(title, compared, "digit", digits, chance)
    if paper:
        yield (
            "The paper's numbers are of all 70,000 images; this run's data and split are named "
            "above. It does not say which score its area is of: it stands beside each of them."
        )
    else:
        yield "The paper's numbers are left out, since they are of MNIST and these are not."
    yield from proof(run, final)
    if not final:
        return
    panels = {f"average precision\n{s}": series(rows, "average_precision", s) for s in arms}
    ends = {label: at_the_end(values) for label, values in panels.items()}
    yield Drawing(
        "table2",
        points_figure(ends, "held-out digit", chance),
        "By held-out digit: mean and standard deviation over seeds, and (small) the seeds.",
    )
    if any(row["iteration"] < row["iterations"] for row in of_kind(rows, "score")):
        yield Drawing(
            "table2-curves",
            curves_figure(panels, "held-out digit"),
            CURVES,
        )
