"""`topk report DIR [DIR...]`: tables and figures of runs' folders, beside the paper's numbers.

Which functions make them from plain numbers is in ``statistics.py`` and ``figures.py``.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.figures import (
    ARMS,
    Point,
    approach,
    arrows_figure,
    called,
    curves_figure,
    grid,
    in_pairs,
    models_figure,
    movement_figure,
    points_figure,
    samples_figure,
    sheets_figure,
    span,
)
from topk_plugin.reference.runs import Member, Row
from topk_plugin.reference.statistics import (
    BINS,
    CLAIMS,
    Comparison,
    Paper,
    Summary,
    compare,
    contrast,
    decimals,
    movement,
    needed,
    verdict,
    with_interval,
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
}
"""What a cell of each experiment is."""

ALIKE = ("version", "features_digest", "data_digest", "real", "fake", "average")
"""Fields, beside its name, in which a Frechet distance has to equal those in its table."""

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
    "table3": {
        "score": ("score", "fid", *ALIKE),
        "sheet": ("file",),
    },
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
            parts = (row.get(name) for name in ("update", "bin", "score"))
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
            return f"failed: {row['nonfinite']:,} numbers are not finite at iteration {last:,}"
        for name in fields if row.get("count") != 0 else ():
            if name not in NAMES and not _sound(row[name]):
                return f"failed: {name} is {row[name]} at iteration {last:,}"
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


def proof_table(rows: Iterable[Row], cell_name: str) -> Table:
    """That top-k was at work: what its report counted, from the least to the most of the seeds."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in of_kind(rows, "topk"):
        groups.setdefault((row["cell"], row["arm"]), []).append(row)
    body = [
        [str(cell), ARMS.get(arm, arm), *(span(row[name] for row in group) for name in PROOF)]
        for (cell, arm), group in sorted(groups.items())
    ]
    columns = [cell_name, "arm", "generator steps", "rows dropped", "realistic is", "last k"]
    return Table("top-k at work", [*columns, "decays"], body)


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
    arm = ARMS.get(member.arm, member.arm)
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
        "Learning curves: mean over seeds, band: one standard deviation.",
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
            "Learning curves: mean over seeds, band: one standard deviation.",
        )


PUBLISHED = ("FID", "CIFAR-10, training part", 50_000, 50_000)
"""Metric, data, and numbers of real and generated images of the paper's Table 3."""


def _table3(run: Run, paper: Paper) -> Iterator[Block]:
    rows, final = _counted(run)
    scored = of_kind(rows, "score")
    for alike in dict.fromkeys(map(_alike, of_kind(final, "score"))):
        own = [row for row in scored if _alike(row) == alike]
        known = own[0]
        what = (known["score"], known["data"], known["real"], known["fake"])
        average = f", weights averaged by {known['average']:g}" if known["average"] else ""
        title = (
            f"{known['score']}, {known['fake']:,} samples against {known['real']:,} images of "
            f"{known['data']}{average}; lower is better"
        )
        values = series(own, "fid", known["score"])
        ends = at_the_end({key: v for key, v in values.items() if key[1] == _length(own, key[0])})
        compared = compare(ends, run.cells, run.arms, "fid", paper if what == PUBLISHED else {})
        yield comparison_table(title, compared, "pixels", 2)
        yield _listed(
            [f"features: sha256 {known['features_digest']}, {known['version']}",
             f"data: sha256 {known['data_digest']}"]
        )  # fmt: skip
        if what == PUBLISHED:
            yield "The paper's numbers have no seeds; it does not say what its ± is of."
        else:
            yield (
                "The paper's numbers are left out: they are FID by Inception of 50,000 samples "
                "against the 50,000 training images of CIFAR-10, and these are not."
            )
        for cell in run.cells:
            curves = {key: v for key, v in values.items() if key[0].cell == cell}
            if any(i < _length(own, member) for member, i in curves):
                yield Drawing(
                    f"table3-{cell}" if len(run.cells) > 1 else "table3",
                    models_figure(known["score"].split(" of ")[0], curves),
                    "Learning curves: mean over seeds, band: one standard deviation.",
                )
    yield from _proof(run, final)
    for cell in run.cells:
        drawn = sorted(of_kind(final, "sheet"), key=lambda row: -row["seed"])
        sheets = {
            row["arm"]: run.folder / "jobs" / row["job"] / row["file"]
            for row in drawn
            if row["cell"] == cell
        }  # of the lowest seed
        sheets = {arm: path for arm, path in sheets.items() if path.is_file()}
        if sheets:
            yield Drawing(
                f"samples-{cell}" if len(run.cells) > 1 else "samples",
                sheets_figure(sheets),
                "Samples at the end, of one seed, both arms from the same latents.",
            )


def _alike(row: Row) -> tuple[Any, ...]:
    return (row["score"], *(row[name] for name in ALIKE))


def _length(rows: Iterable[Row], member: Member) -> int:
    return max(row["iterations"] for row in rows if member_of(row) == member)


def _proof(run: Run, final: Sequence[Row]) -> Iterator[Block]:
    """Top-k's own counts, and the members of top-k arms in which it did nothing."""
    dropped = {member_of(row): row["dropped"] for row in of_kind(final, "topk")}
    if dropped:
        yield proof_table(final, CELLS[run.experiment])
    members = dict.fromkeys(map(member_of, final))
    if idle := [member for member in members if "top-k" in member.arm and not dropped.get(member)]:
        yield "Top-k dropped nothing in these, so that they are baselines:"
        yield _listed(
            f"{_named(run, member)}: {'0 rows' if member in dropped else 'no record of top-k'}"
            for member in idle
        )


SECTIONS: dict[str, Callable[[Run, Paper], Iterator[Block]]] = {
    "table1": _table1,
    "study": _study,
    "probe": _probe,
    "table2": _table2,
    "table3": _table3,
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
