"""A run's folder, read and checked, and what its rows say."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from topk_plugin.errors import ConfigError
from topk_plugin.reference.experiments import EXPERIMENTS, Experiment
from topk_plugin.reference.fid import scores
from topk_plugin.reference.runs.records import Member, Row

PRESETS = {
    "smoke": "shows that it runs, says nothing about the method",
    "short": "shorter than in the paper",
    "paper": "as long as in the paper",
}

ALIKE = (*scores.ALIKE, "average")
"""Fields, beside its name, in which a Frechet distance has to equal those in its table."""

KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "mixture": {"score": ("high_quality", "modes"), "samples": ("points",)},
    "study": {"score": ("high_quality", "modes")},
    "probe": {
        "movement": ("update", "bin", "count", "cosine", "change"),
        "arrows": ("update", "points"),
    },
    "anomaly": {"score": ("score", "average_precision", "trapezoid")},
    "images": {"score": ("score", "fid", *ALIKE), "sheet": ("file",)},
}
"""The kinds of rows of each trainer that are reported, and their fields. A member that has ended
has rows of the first one at its last iteration."""

NAMES = ("update", "score", *ALIKE)  # fields that are not measured
PROOF = ("steps", "dropped", "direction", "last_k", "epochs")  # fields of the kind "topk"


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
    def about(self) -> Experiment:
        """What it is a run of."""
        return EXPERIMENTS[self.experiment]

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
    _one_of(written["experiment"], EXPERIMENTS, f"{file}: experiment")
    _one_of(written["preset"], PRESETS, f"{file}: preset")
    later = {key: written[key] for key in ("changed", "device_name", "seconds") if key in written}
    return Run(folder, **{key: written[key] for key in types}, **later)


def _checked(row: Any, run: Run, members: Sequence[Member], where: str) -> Row:
    """A row with all of its fields, and with the length of its training."""
    names: tuple[str, ...] = ("cell", "arm", "seed", "iteration", "kind")
    if not isinstance(row, dict):
        raise _damaged(where, "it is no object")
    known = {"topk": PROOF, **KINDS[run.about.trainer]}
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
    kind, fields = next(iter(KINDS[run.about.trainer].items()))
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


def counted(run: Run) -> tuple[list[Row], list[Row]]:
    """Rows of the members that are not left out: all of them, and those of the last iteration."""
    out = left_out(run)
    rows = [row for row in run.rows if member_of(row) not in out]
    return rows, [row for row in rows if row["iteration"] == row["iterations"]]


def setting(run: Run, name: str) -> float:
    """A number of the run's settings.

    Raises:
        ConfigError: it has none of that name.
    """
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
