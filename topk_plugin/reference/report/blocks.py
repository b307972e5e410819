"""What a report is made of: texts, tables and drawings, and those that several experiments have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from topk_plugin.reference.report.arms import ARMS, gated, labels_of, named, span
from topk_plugin.reference.report.folder import PROOF, Run, member_of, of_kind
from topk_plugin.reference.runs.records import Row
from topk_plugin.reference.statistics import Comparison, Summary, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Metric(NamedTuple):
    """How a number of a row is shown."""

    label: str
    digits: int


METRICS = {
    "high_quality": Metric("high-quality samples (%)", 1),
    "modes": Metric("modes recovered (%)", 1),
    "average_precision": Metric("average precision", 3),
    "trapezoid": Metric("area by trapezoids", 3),
}


class Table(NamedTuple):
    """Text in columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table, its title in bold above it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def comparison_table(
    title: str,
    rows: Sequence[Comparison],
    cell_name: str,
    digits: int,
    chance: Mapping[int, float] | None = None,
) -> Table:
    """Our two arms, their paired difference with its 95% interval, and the paper's two numbers.

    Args:
        title: what is compared, with its unit.
        rows: as :func:`~topk_plugin.reference.statistics.compare` gives them.
        cell_name: what tells the rows apart, such as "modes".
        digits: after the point.
        chance: by cell, what a score that knows nothing gets.
    """
    several = len({row.baseline_arm for row in rows}) > 1
    pair = ["baseline", "top-k"]
    if not several:
        pair = [ARMS.get(arm, arm) for row in rows[:1] for arm in row[1:3]]
    columns = [cell_name, *["model"] * several, *pair, "difference [95%]", "seeds"]
    columns += [f"paper: {name}" for name in pair] + ["chance"] * bool(chance)
    body = []
    for row in rows:
        line = [str(row.cell)]
        if several:
            line.append(ARMS.get(row.baseline_arm, row.baseline_arm))
        line += [with_std(arm, digits) for arm in (row.baseline, row.topk)]
        line.append("-" if row.difference is None else with_interval(row.difference, digits))
        line.append(_seeds(row))
        line += ["-" if number is None else f"{number:.{digits}f}" for number in row.paper]
        if chance:
            line.append(f"{chance[row.cell]:.{digits}f}" if row.cell in chance else "-")
        body.append(line)
    return Table(title, columns, body)


def proof_table(rows: Iterable[Row], cell_name: str, labels: Mapping[str, str] = ARMS) -> Table:
    """That top-k was at work: what its report counted, from the least to the most of the seeds.

    Args:
        rows: those of kind "topk" count; where they say in whose loss it was, there is a line for
            each.
        cell_name: what tells the rows apart, such as "modes".
        labels: the arms in words.
    """
    groups: dict[tuple[int, str, str], list[Row]] = {}
    for row in of_kind(rows, "topk"):
        groups.setdefault((row["cell"], row["arm"], row.get("of", "")), []).append(row)
    several = any(of for _, _, of in groups)
    place = {arm: number for number, arm in enumerate(labels)}
    body = []
    for cell, arm, of in sorted(groups, key=lambda key: (key[0], place.get(key[1], -1), *key[1:])):
        counted = [span(row[name] for row in groups[cell, arm, of]) for name in PROOF]
        body.append([str(cell), labels.get(arm, arm), *[of or "-"] * several, *counted])
    columns = [cell_name, "arm", *(["of", "steps"] if several else ["generator steps"])]
    columns += ["rows dropped", "realistic is", "last k", "decays"]
    return Table("top-k at work", columns, body)


def with_std(arm: Summary | None, digits: int) -> str:
    """An arm's mean and standard deviation."""
    if arm is None:
        return "-"
    spread = "" if arm.std is None else f" ± {arm.std:.{digits}f}"
    return f"{arm.mean:.{digits}f}{spread}"


def _seeds(row: Comparison) -> str:
    counts = [0 if part is None else part.n for part in (row.baseline, row.topk, row.difference)]
    if len(set(counts)) == 1:
        return str(counts[0])
    return "{}, {}; {} paired".format(*counts)


class Drawing(NamedTuple):
    """A figure, the name of its files without the suffix, and what it shows."""

    name: str
    figure: Figure
    caption: str


Block = str | Table | Drawing

CURVES = "Learning curves: mean over seeds, band: one standard deviation."


def listed(lines: Iterable[str]) -> str:
    """Lines as a list of Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def of_cell(run: Run, cell: int) -> str:
    """Of a figure's name, where there is one for each cell."""
    return f"-{cell}" if len(run.cells) > 1 else ""


def proof(run: Run, final: Sequence[Row]) -> Iterator[Block]:
    """Top-k's own counts, and the members of top-k arms in which it did nothing."""
    dropped = {
        (member_of(row), row.get("of", "generator")): row["dropped"]
        for row in of_kind(final, "topk")
    }
    if dropped:
        yield proof_table(final, run.about.cell, labels_of(run))
    idle = [
        (member, of)
        for member in dict.fromkeys(map(member_of, final))
        for of in gated(member.arm)
        if not dropped.get((member, of))
    ]
    if idle:
        usual = all(gated(member.arm) == ("generator",) for member, _ in idle)
        yield (
            "Top-k dropped nothing in these, so that they are baselines:"
            if usual
            else "Top-k dropped nothing in these losses, which are as a baseline's:"
        )
        yield listed(
            f"{named(run, member)}{'' if usual else f', {of}'}: "
            + ("0 rows" if (member, of) in dropped else "no record of top-k")
            for member, of in idle
        )
