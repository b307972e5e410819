"""`topk report DIR [DIR...]`: tables and figures of runs' folders, beside the paper's numbers.

Which functions make them from plain numbers is in ``statistics.py`` and ``figures.py``.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.extras import needed
from topk_plugin.reference.figures import (
    ARMS,
    Point,
    ablation_figure,
    approach,
    arrows_figure,
    called,
    curves_figure,
    grid,
    groups_figure,
    in_pairs,
    models_figure,
    movement_figure,
    points_figure,
    samples_figure,
    sheets_figure,
    span,
)
from topk_plugin.reference.models import ABLATED
from topk_plugin.reference.models import ARMS as TRAINED
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.statistics import (
    BINS,
    CLAIMS,
    ORDERS,
    Comparison,
    Paper,
    Summary,
    by_seed,
    compare,
    contrast,
    decimals,
    movement,
    ordered,
    paired_difference,
    summary,
    verdict,
    with_interval,
    without_topk,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRESETS = {
    "smoke": "shows that it runs, says nothing about the method",
    "short": "shorter than in the paper",
    "paper": "as long as in the paper",
}
CELLS = {
    "table1": "modes",
    "study": "modes",
    "probe": "modes",
    "table2": "held-out digit",
    "table3": "pixels",
    "table4": "pixels",
    "table5": "pixels",
    "neurips": "pixels",
}
"""What a cell of each experiment is."""

ALIKE = ("version", "features_digest", "data_digest", "real", "fake", "average")
"""Fields, beside its name, in which a Frechet distance has to equal those in its table."""

IMAGES: dict[str, tuple[str, ...]] = {"score": ("score", "fid", *ALIKE), "sheet": ("file",)}
"""KINDS of an experiment on images."""

KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "table1": {
        "score": ("high_quality", "modes"),
        "samples": ("points",),
    },
    "study": {"score": ("high_quality", "modes")},
    "probe": {
        "movement": ("update", "bin", "count", "cosine", "change"),
        "arrows": ("update", "points"),
    },
    "table2": {
        "score": ("score", "average_precision", "trapezoid"),
    },
    "table3": IMAGES,
    "table4": IMAGES,
    "table5": IMAGES,
    "neurips": IMAGES,
}
"""The kinds of rows of each experiment that are reported, and their fields. A member that has ended
has rows of the first one at its last iteration."""

NAMES = ("update", "score", *ALIKE)  # fields that are not measured
PROOF = ("steps", "dropped", "direction", "last_k", "epochs")  # fields of the kind "topk"


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


# --- a run's folder -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a folder's ``run.json`` says, and the rows of its jobs."""

    folder: Path
    experiment: str
    preset: str
    settings: Mapping[str, Any]
    cells: Sequence[int]
    arms: Sequence[str]
    seeds: int
    device: str
    versions: Mapping[str, str]
    command: str
    data: Mapping[str, Any] | None
    changed: Sequence[str] = ()  # settings that were given beside the preset
    device_name: str = ""
    seconds: float = 0.0  # that it took
    rows: Sequence[Row] = ()
    cut: Sequence[str] = ()  # files whose last line is not complete

    @property
    def members(self) -> list[Member]:
        """Everything that was to be trained."""
        seeds = range(self.seeds)
        return [Member(cell, arm, s) for cell in self.cells for arm in self.arms for s in seeds]


def read_run(folder: Path) -> Run:
    """Read ``run.json`` and ``jobs/*/metrics.jsonl`` of a run's folder.

    A row says how long its training is, in iterations, or the run's settings do. Where a row is
    repeated, as by a job that was resumed, the later one counts. A last line that is not complete,
    as a killed job leaves it, is left out, and its file named in ``Run.cut``.

    Raises:
        ConfigError: the folder is no run's, has no rows, or something in it is damaged.
    """
    run = _read_settings(folder)
    files = sorted(folder.glob("jobs/*/metrics.jsonl"))
    members = run.members
    rows: dict[tuple[object, ...], Row] = {}
    cut = []
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(True), start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    cut.append(str(file.relative_to(folder)))
                    continue
                raise _damaged(f"{file}, line {number}", str(error)) from error
            row = _checked(row, run, members, f"{file}, line {number}")
            row["job"] = file.parent.name
            parts = (row.get(name) for name in ("update", "bin", "score", "of"))
            rows[(member_of(row), row["iteration"], row["kind"], *parts)] = row
    if not rows:
        raise ConfigError(
            f"{folder}: found run.json and {len(files)} files jobs/*/metrics.jsonl with no row in "
            f"them, expected rows of a training; this one begins it: {run.command}"
        )
    return replace(run, rows=list(rows.values()), cut=cut)


def _read_settings(folder: Path) -> Run:
    """All but the rows."""
    file = folder / "run.json"
    if not file.is_file():
        found = "no such folder"
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir())
            found = ", ".join([*names[:8], *(["…"] if len(names) > 8 else [])]) or "nothing"
        raise ConfigError(
            f"{folder}: found {found}, expected a run's folder with run.json in it, as "
            "topk reproduce writes it"
        )
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(written, dict):
        raise _damaged(file, "it holds no object")
    types: dict[str, type | tuple[type, ...]] = {
        "experiment": str,
        "preset": str,
        "settings": dict,
        "cells": list,
        "arms": list,
        "seeds": int,
        "device": str,
        "versions": dict,
        "command": str,
        "data": (dict, type(None)),
    }
    for name, kind in types.items():
        if name not in written:
            raise _damaged(file, f"{name} is missing")
        if not isinstance(written[name], kind):
            raise _damaged(file, f"{name} is {written[name]!r}")
    _one_of(written["experiment"], KINDS, f"{file}: experiment")
    _one_of(written["preset"], PRESETS, f"{file}: preset")
    later = {key: written[key] for key in ("changed", "device_name", "seconds") if key in written}
    return Run(folder, **{key: written[key] for key in types}, **later)


def _checked(row: Any, run: Run, members: Sequence[Member], where: str) -> Row:
    """A row with all of its fields, and with the length of its training."""
    names: tuple[str, ...] = ("cell", "arm", "seed", "iteration", "kind")
    if not isinstance(row, dict):
        raise _damaged(where, "it is no object")
    known = {"topk": PROOF, **KINDS[run.experiment]}
    if missing := [
        name for name in (*names, *known.get(row.get("kind", ""), ())) if name not in row
    ]:
        raise _damaged(where, f"{', '.join(missing)} missing")
    if member_of(row) not in members:
        raise _damaged(where, f"{tuple(member_of(row))} is not in run.json")
    length = row.get("iterations", run.settings.get("iterations"))
    if not isinstance(row["iteration"], int):
        raise _damaged(where, f"iteration is {row['iteration']!r}")
    if not isinstance(length, int):
        raise _damaged(where, "neither it nor run.json's settings has iterations")
    return row | {"iterations": length}


def member_of(row: Row) -> Member:
    """Whose row it is."""
    return Member(row["cell"], row["arm"], row["seed"])


FAILED = "failed"
"""How the reason begins where a member is left out for numbers that are not finite."""


def left_out(run: Run) -> dict[Member, str]:
    """Members that no number counts, and why: they have not ended, or are not finite."""
    rows: dict[Member, list[Row]] = {member: [] for member in run.members}
    for row in run.rows:
        rows[member_of(row)].append(row)
    found = {member: _fault(run, own) for member, own in rows.items()}
    return {member: fault for member, fault in found.items() if fault}


def _fault(run: Run, rows: Sequence[Row]) -> str | None:
    """Why a member with these rows is left out."""
    if not rows:
        return "not begun"
    kind, fields = next(iter(KINDS[run.experiment].items()))
    last, length = max((row["iteration"], row["iterations"]) for row in rows)
    measured = [row for row in rows if row["kind"] == kind and row["iteration"] == last]
    for row in measured:
        if row.get("nonfinite"):
            return f"{FAILED}: {row['nonfinite']:,} numbers are not finite at iteration {last:,}"
        for name in fields if row.get("count") != 0 else ():
            if name not in NAMES and not _sound(row[name]):
                return f"{FAILED}: {name} is {row[name]} at iteration {last:,}"
    if last != length:
        return f"unfinished: iteration {last:,} of {length:,}"
    return None if measured else f"damaged: no {kind} at the end"


def _sound(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """Rows of that kind."""
    return [row for row in rows if row["kind"] == kind]


def series(
    rows: Iterable[Row], metric: str, score: str | None = None
) -> dict[tuple[Member, int], float]:
    """A metric by member and iteration, from rows of kind "score" (of that anomaly score)."""
    return {
        (member_of(row), row["iteration"]): math.nan if row[metric] is None else row[metric]
        for row in of_kind(rows, "score")
        if row.get("score") == score
    }


def at_the_end(values: Mapping[tuple[Member, int], float]) -> dict[Member, float]:
    """Each member's number of its last iteration."""
    return {member: values[member, i] for member, i in sorted(values, key=lambda key: key[1])}


# --- tables -------------------------------------------------------------------------------------


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
        line += [_with_std(arm, digits) for arm in (row.baseline, row.topk)]
        line.append("-" if row.difference is None else with_interval(row.difference, digits))
        line.append(_seeds(row))
        line += ["-" if number is None else f"{number:.{digits}f}" for number in row.paper]
        if chance:
            line.append(f"{chance[row.cell]:.{digits}f}" if row.cell in chance else "-")
        body.append(line)
    return Table(title, columns, body)


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


def _with_std(arm: Summary | None, digits: int) -> str:
    if arm is None:
        return "-"
    spread = "" if arm.std is None else f" ± {arm.std:.{digits}f}"
    return f"{arm.mean:.{digits}f}{spread}"


def _seeds(row: Comparison) -> str:
    counts = [0 if part is None else part.n for part in (row.baseline, row.topk, row.difference)]
    if len(set(counts)) == 1:
        return str(counts[0])
    return "{}, {}; {} paired".format(*counts)


# --- the report ---------------------------------------------------------------------------------


class Drawing(NamedTuple):
    """A figure, the name of its files without the suffix, and what it shows."""

    name: str
    figure: Figure
    caption: str


Block = str | Table | Drawing

CURVES = "Learning curves: mean over seeds, band: one standard deviation."


def report(folders: Sequence[Path]) -> int:
    """Print the tables of runs' folders; write ``report.md`` and the figures into each.

    Each folder is reported by itself: what ran under other settings, with other data or another
    preset is never put into one table. Figures are written as PNG and PDF. Returns 0.

    Raises:
        ConfigError: a folder is no run's, has no rows, or is damaged; before anything is written.
        RunError: the report cannot be written.
        TopKError: matplotlib, scipy or scikit-learn is not installed.
    """
    from rich.console import Console

    for module in ("matplotlib", "scipy", "sklearn"):
        needed(module)
    runs = [read_run(Path(folder)) for folder in folders]
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=120)
    for run in runs:
        experiment = EXPERIMENTS[run.experiment]
        blocks = [*header(run, experiment.open), *SECTIONS[run.experiment](run, experiment.paper)]
        try:
            _write(run.folder, experiment.title, blocks)
        except OSError as error:
            raise RunError(f"{run.folder}: the report cannot be written: {error}") from error
        console.print(f"\n{experiment.title}\n")
        for block in blocks:
            console.print(_printed(block, run.folder))
        console.print(f"report: {run.folder / 'report.md'}")
    return 0


def header(run: Run, left_open: Sequence[str] = ()) -> Iterator[Block]:
    """What was run, which settings the paper leaves open, and which members no number counts."""
    lengths = span(row["iterations"] for row in run.rows)
    lines = [
        f"preset: {run.preset}: {PRESETS[run.preset]}"
        + (f", but for what was changed: {', '.join(run.changed)}" if run.changed else ""),
        f"{lengths} iterations, {run.seeds} seed{'s' * (run.seeds != 1)}, on "
        f"{run.device_name or run.device}" + (f", {run.seconds:,.0f} s" if run.seconds else ""),
        f"versions: {_pairs(run.versions)}",
        f"command: {run.command}",
        f"settings: {_pairs(run.settings)}",
    ]
    if left_open:
        lines.append(f"of these the paper leaves open: {', '.join(left_open)}")
    if run.data is not None:
        lines.append(f"data: {_pairs(run.data)}")
    yield _listed(lines)
    if out := left_out(run):
        yield f"Left out: {len(out)} of {len(run.members)} members, which no number counts:"
        yield _listed(f"{_named(run, member)}: {why}" for member, why in out.items())
    if run.cut:
        yield (
            f"The last line of {', '.join(run.cut)} is not complete and is left out: the job was "
            "killed, or is writing it now."
        )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _named(run: Run, member: Member) -> str:
    arm = labels_of(run).get(member.arm, member.arm)
    return f"{called(member.cell, CELLS[run.experiment])}, {arm}, seed {member.seed}"


def _counted(run: Run) -> tuple[list[Row], list[Row]]:
    """Rows of the members that are not left out: all of them, and those of the last iteration."""
    out = left_out(run)
    rows = [row for row in run.rows if member_of(row) not in out]
    return rows, [row for row in rows if row["iteration"] == row["iterations"]]


def _table1(run: Run, paper: Paper) -> Iterator[Block]:
    rows, final = _counted(run)
    names = ("high_quality", "modes")
    for name in names:
        label, digits = METRICS[name]
        compared = compare(at_the_end(series(final, name)), run.cells, run.arms, name, paper)
        yield comparison_table(label, compared, "modes", digits)
    yield from _proof(run, final)
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
            samples_figure(points, _setting(run, "spacing"), _setting(run, "std")),
            "Samples of one seed; circles: 4 std around the modes.",
        )


def _study(run: Run, paper: Paper) -> Iterator[Block]:
    final = _counted(run)[1]
    yield study_table(of_kind(final, "score"), run.cells, paper)
    yield (
        "Percent of high-quality samples and of modes recovered, by number of modes; means over "
        "seeds. Distance: the mean over a row's numbers of how far they are from the "
        "paper's baseline, in percentage points. The variant that is nearest is the default."
    )


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


def _probe(run: Run, paper: Paper) -> Iterator[Block]:
    final = _counted(run)[1]
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
            spacing, std = _setting(run, "spacing"), _setting(run, "std")
            yield Drawing(
                f"figure4{suffix}",
                arrows_figure(points, cell, spacing, std),
                f"Figure 4: movement of samples by one update{of_cell}, of one seed; circles: "
                "4 std around the modes.",
            )
            yield _listed([directions(points, grid(cell, spacing))])


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
            yield _listed(verdict(claim, found) for claim in CLAIMS if claim.quantity == name)


def directions(points: Mapping[str, Sequence[Sequence[float]]], centers: Sequence[Point]) -> str:
    """One sentence: how many drawn samples (N, 4) each update moves away from their modes."""
    parts = []
    for update, drawn in points.items():
        away = sum(approach(arrow, centers) < 0 for arrow in drawn)
        parts.append(f"{update} {away} of {len(drawn)}")
    return f"Drawn samples that move away from the nearest mode: {', '.join(parts)}."


def _table2(run: Run, paper: Paper) -> Iterator[Block]:
    rows, final = _counted(run)
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
    yield from _proof(run, final)
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


class Published(NamedTuple):
    """What the paper's Frechet distances of an experiment are of."""

    data: str  # how its name ends, in which a folder's begins with the folder's own
    real: int
    images: str  # in words
    note: str  # on the paper's numbers
    fake: int = 50_000
    score: str = "FID"

    def equals(self, known: Row) -> bool:
        """Whether a row's distance is of the same kind."""
        counts = (known["score"], known["real"], known["fake"])
        return counts == (self.score, self.real, self.fake) and known["data"].endswith(self.data)


CIFAR10 = Published(
    "CIFAR-10, training part",
    50_000,
    "the 50,000 training images of CIFAR-10",
    "The paper's numbers have no seeds; it does not say what its ± is of.",
)
IMAGENET = Published(
    ", 1,281,167 images of 1,000 classes at 128x128",
    1_281_167,
    "ImageNet's 1,281,167 training images of 1,000 classes at 128x128",
    "The paper's numbers have no seeds; it does not say which real images they are of.",
)
PUBLISHED = {
    "table3": CIFAR10,
    "table4": IMAGENET,
    "table5": CIFAR10._replace(note="The paper's numbers have no seeds and no spread."),
    "neurips": CIFAR10._replace(
        note="The paper's numbers are of its abstract, which says no more about them."
    ),
}


class Distances(NamedTuple):
    """Frechet distances that may stand in one table."""

    known: Row  # one of their rows: what they have in common
    values: Mapping[tuple[Member, int], float]
    lengths: Mapping[Member, int]
    suffix: str  # of the names of their figures
    paper: Paper  # numbers of the paper's that may stand beside them
    note: str  # on those, or on why there are none

    @property
    def title(self) -> str:
        """What they are."""
        known = self.known
        average = f", weights averaged by {known['average']:g}" if known["average"] else ""
        return (
            f"{known['score']}, {known['fake']:,} samples against {known['real']:,} images of "
            f"{known['data']}{average}; lower is better"
        )

    @property
    def quantity(self) -> str:
        """For an axis."""
        name: str = self.known["score"]
        return name.split(" of ")[0]

    @property
    def ends(self) -> dict[Member, float]:
        """Each member's at its last iteration."""
        last = {key: v for key, v in self.values.items() if key[1] == self.lengths[key[0]]}
        return at_the_end(last)

    def curves(self, cell: int) -> dict[tuple[Member, int], float] | None:
        """Those of a cell; None where there are only those of the end."""
        own = {key: v for key, v in self.values.items() if key[0].cell == cell}
        return own if any(i < self.lengths[member] for member, i in own) else None


def distances(run: Run, paper: Paper) -> Iterator[Distances]:
    """The Frechet distances of the members that are not left out, by what they have in common."""
    rows, final = _counted(run)
    scored = of_kind(rows, "score")
    for number, alike in enumerate(dict.fromkeys(map(_alike, of_kind(final, "score"))), start=1):
        own = [row for row in scored if _alike(row) == alike]
        values = series(own, "fid", own[0]["score"])
        lengths = {member_of(row): row["iterations"] for row in own}
        why = _unlike(run, own[0])
        note = f"The paper's numbers are left out: {why}."
        suffix = f"-{number}" * (number > 1)
        beside = ({}, note) if why else (paper, PUBLISHED[run.experiment].note)
        yield Distances(own[0], values, lengths, suffix, *beside)


def _alike(row: Row) -> tuple[Any, ...]:
    return (row["score"], *(row[name] for name in ALIKE))


def _unlike(run: Run, known: Row) -> str | None:
    """Why the paper's numbers may not stand beside a distance."""
    published = PUBLISHED[run.experiment]
    if not published.equals(known):
        return (
            f"they are FID by Inception of {published.fake:,} samples against "
            f"{published.images}, and these are not"
        )
    if _role(run) != "proposed":
        gamma, nu = _proposed(run)
        varied = ", but for what an arm varies" * (run.experiment == "table5")
        return f"they are of gamma {gamma} and nu {nu}{varied}"
    return None


def _origin(found: Distances) -> Iterator[Block]:
    """Below a table of distances: by which features, of which data; on the paper's numbers."""
    yield _listed(
        [f"features: sha256 {found.known['features_digest']}, {found.known['version']}",
         f"data: sha256 {found.known['data_digest']}"]
    )  # fmt: skip
    yield found.note


def _of_cell(run: Run, cell: int) -> str:
    """Of a figure's name, where there is one for each cell."""
    return f"-{cell}" if len(run.cells) > 1 else ""


def _models(run: Run, paper: Paper) -> Iterator[Block]:
    """Of Tables 3 and 4 and the later version's: models of images, without and with top-k."""
    for found in distances(run, paper):
        compared = compare(found.ends, run.cells, run.arms, "fid", found.paper)
        yield comparison_table(found.title, compared, "pixels", 2)
        yield from _origin(found)
        for cell in run.cells:
            if curves := found.curves(cell):
                yield Drawing(
                    f"{run.experiment}{_of_cell(run, cell)}{found.suffix}",
                    models_figure(found.quantity, curves),
                    CURVES,
                )
    yield from _proof(run, _counted(run)[1])
    yield from _sheets(run, "both")


BASELINE, REFERENCE = "sagan", "top-k+sagan"
"""Arms of Table 5: what all others are compared with, and what they differ from in one thing."""

PROPOSED = (0.99, 0.5)
"""Gamma and nu (paper, section 5.2)."""

VARIED = {
    "gamma": "gamma: factor of k at each decay",
    "nu": "nu: smallest k, in parts of the batch",
    "whose loss": "in whose loss top-k is",
}
"""What Table 5's arms vary, and the axis of its figure."""

LOWER = "{}\n(lower is better)"


def _table5(run: Run, paper: Paper) -> Iterator[Block]:
    for found in distances(run, paper):
        for cell in run.cells:
            yield ablation_table(run, found, cell)
            yield from _origin(found)
            if run.preset != "smoke":  # after so few iterations a sign says nothing
                yield from _verdicts(run, found.ends, cell)
            yield from _ablation_drawings(run, found, cell)
    yield from _proof(run, _counted(run)[1])
    yield from _sheets(run, "all")


def labels_of(run: Run) -> Mapping[str, str]:
    """A run's arms in words."""
    if run.experiment != "table5":
        return ARMS
    gamma, nu = _gamma_and_nu(run)
    reference = f"gamma {gamma:g}, nu {nu:g} ({_role(run)})"
    return ARMS | {BASELINE: "baseline (no top-k)", REFERENCE: reference}


def _gamma_and_nu(run: Run) -> tuple[float, float]:
    """Those of arms that do not have their own."""
    return _setting(run, "gamma"), _setting(run, "nu")


def _proposed(run: Run) -> tuple[float, float]:
    """The gamma and the nu that the paper has for an experiment."""
    settings = EXPERIMENTS[run.experiment].presets["paper"].settings
    return settings.get("gamma", PROPOSED[0]), settings.get("nu", PROPOSED[1])


def _role(run: Run) -> str:
    """What the arm with the run's gamma and nu is, Table 5's reference."""
    return "proposed" if _gamma_and_nu(run) == _proposed(run) else "reference"


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
        line = [labels.get(arm, arm), _with_std(summary(own.values()), 2), *line, seeds]
        body.append([*line, "-" if number is None else f"{number:.2f}"])
    columns = ["arm", found.quantity, "from the baseline [95%]", f"from the {_role(run)} [95%]"]
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
    for order in ORDERS if _role(run) == "proposed" else ():
        if {order.arm, order.than} <= {*run.arms}:
            than, own = (by_seed(ends, cell, name) for name in (order.than, order.arm))
            difference = paired_difference(than, own)
            lines.append(ordered(order, difference, labels_of(run), failed))
    if lines:
        yield _listed(lines)


def _ablation_drawings(run: Run, found: Distances, cell: int) -> Iterator[Block]:
    """Table 5's figure, and the learning curves, by what an arm varies."""
    ends = {member: value for member, value in found.ends.items() if member.cell == cell}
    ended = {member.arm for member in ends}
    panels = {what: ticks for what, ticks in _varied(run).items() if ended & {*ticks} - {REFERENCE}}
    if not panels:
        return
    name = f"table5{_of_cell(run, cell)}"
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
        short = {**labels, BASELINE: "baseline", REFERENCE: _role(run)}
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
    gamma, nu = _gamma_and_nu(run)
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


def _sheets(run: Run, arms: str) -> Iterator[Block]:
    for cell in run.cells:
        drawn = sorted(of_kind(_counted(run)[1], "sheet"), key=lambda row: -row["seed"])
        sheets = {
            row["arm"]: run.folder / "jobs" / row["job"] / row["file"]
            for row in drawn
            if row["cell"] == cell
        }  # of the lowest seed
        sheets = {arm: path for arm, path in sheets.items() if path.is_file()}
        if sheets:
            yield Drawing(
                f"samples{_of_cell(run, cell)}",
                sheets_figure(sheets, labels_of(run)),
                f"Samples at the end, of one seed, {arms} arms from the same latents.",
            )


def _proof(run: Run, final: Sequence[Row]) -> Iterator[Block]:
    """Top-k's own counts, and the members of top-k arms in which it did nothing."""
    dropped = {
        (member_of(row), row.get("of", "generator")): row["dropped"]
        for row in of_kind(final, "topk")
    }
    if dropped:
        yield proof_table(final, CELLS[run.experiment], labels_of(run))
    idle = [
        (member, of)
        for member in dict.fromkeys(map(member_of, final))
        for of in _gated(member.arm)
        if not dropped.get((member, of))
    ]
    if idle:
        usual = all(_gated(member.arm) == ("generator",) for member, _ in idle)
        yield (
            "Top-k dropped nothing in these, so that they are baselines:"
            if usual
            else "Top-k dropped nothing in these losses, which are as a baseline's:"
        )
        yield _listed(
            f"{_named(run, member)}{'' if usual else f', {of}'}: "
            + ("0 rows" if (member, of) in dropped else "no record of top-k")
            for member, of in idle
        )


def _gated(arm: str) -> tuple[str, ...]:
    """In whose loss an arm has top-k."""
    if arm in TRAINED:
        return TRAINED[arm].topk
    return ("generator",) if without_topk(arm) != arm else ()


SECTIONS: dict[str, Callable[[Run, Paper], Iterator[Block]]] = {
    "table1": _table1,
    "study": _study,
    "probe": _probe,
    "table2": _table2,
    "table3": _models,
    "table4": _models,
    "table5": _table5,
    "neurips": _models,
}
"""What is reported of each experiment."""


def _write(folder: Path, title: str, blocks: Iterable[Block]) -> None:
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Drawing):
            # without a date, so that the same numbers give the same files
            block.figure.savefig(folder / f"{block.name}.pdf", metadata={"CreationDate": None})
            block.figure.savefig(folder / f"{block.name}.png", dpi=130)
            parts.append(f"![{block.name}]({block.name}.png)\n\n{block.caption}")
        else:
            parts.append(block.markdown() if isinstance(block, Table) else block)
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _printed(block: Block, folder: Path) -> Any:
    """A block for the terminal."""
    from rich import box
    from rich import table as rich_table
    from rich.console import Group

    if isinstance(block, Drawing):
        return f"{folder / block.name}.png, .pdf: {block.caption}\n"
    if isinstance(block, str):
        return f"{block}\n"
    printed = rich_table.Table(box=box.SIMPLE)
    for column in block.columns:
        printed.add_column(column.replace(": ", ":\n"), overflow="fold")
    for row in block.rows:
        printed.add_row(*row)
    return Group(block.title, printed)


def _setting(run: Run, name: str) -> float:
    value = run.settings.get(name)
    if not isinstance(value, int | float):
        raise _damaged(run.folder / "run.json", f"settings.{name} is {value!r}")
    return value


def _one_of(found: str, known: Iterable[str], where: str) -> None:
    names = list(known)
    if found not in names:
        near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: found {found!r}, expected one of {', '.join(names)}{guess}")


def _damaged(where: object, why: str) -> ConfigError:
    return ConfigError(f"{where}: damaged: {why}; restore it, or run the experiment again")
