"""What is measured of a run that has ended: numbers read from its output and its files."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topk_plugin.errors import ConfigError

KINDS = {
    "fid": "fid:SAMPLES:REAL",
    "json": "json:FILE:key",
    "csv": "csv:FILE:column",
    "regex": "regex:PATTERN",
    "python": "python:module:function",
}
EXPECTED = "[higher:|lower:]KIND:…, where KIND:… is one of " + ", ".join(
    KINDS.values()
)  # as a sentence says it

ENCODING = "utf-8-sig"
"""Of JSON and CSV files; some programs begin them with a mark of the byte order."""


class NotMeasured(Exception):
    """A metric that a run does not give; the message says why."""


@dataclass(frozen=True)
class Metric:
    """One number, or several, of each run.

    spec: as the user wrote it, without the side.
    better: "higher", "lower", or "" where nobody said.
    """

    spec: str
    kind: str
    source: str  # a file, a folder, a pattern or a module; {out} and {seed} stand for the run's
    what: str  # the key, the column, the real images, or the function
    better: str
    name: str  # as the report calls it
    by: str = ""  # the features of a distance

    def called(self, name: str, by: str) -> Metric:
        """The same by another name, and by the features that a distance is measured by."""
        return dataclasses.replace(self, name=name, by=by)

    def key(self) -> str:
        """What its numbers are kept under: all that they are read by, a function's module too."""
        by = _digest(self.source) if self.kind == "python" else self.by
        return f"{self.better}:{self.spec}" + (f" by {by}" if by else "")

    @property
    def text(self) -> str:
        """As a command says it."""
        return f"{self.better}:{self.spec}" if self.better else self.spec

    @property
    def needs_out(self) -> bool:
        """It reads what the run wrote."""
        return self.kind in ("fid", "json", "csv")


def metric_of(text: str) -> Metric:
    """What ``--metric`` says.

    Raises:
        ConfigError: it is of no known form, or its pattern is none.
    """
    better, _, spec = text.partition(":")
    if better not in ("higher", "lower"):
        better, spec = "", text
    kind, _, rest = spec.partition(":")
    if kind not in KINDS or not rest:
        raise ConfigError(f"--metric: found {text!r}, expected {EXPECTED}")
    source, what, named = rest, "", rest
    if kind == "regex":
        try:
            pattern = re.compile(rest, re.MULTILINE)
        except re.error as error:
            raise ConfigError(
                f"--metric: found the pattern {rest!r}, which is none ({error}); "
                "expected a regular expression with one group that holds the number"
            ) from None
        if pattern.groups != 1:
            raise ConfigError(
                f"--metric: found {pattern.groups} groups in the pattern {rest!r}, expected one "
                r"that holds the number, such as 'loss: ([\d.]+)'"
            )
        named = next(iter(pattern.groupindex), rest)  # (?P<loss>[\d.]+)
    else:
        source, _, what = rest.rpartition(":")
        if not source or not what:
            raise ConfigError(f"--metric: found {text!r}, expected {KINDS[kind]}")
    if kind in ("fid", "json", "csv") and "{out}" not in source and "{seed}" not in source:
        raise ConfigError(
            f"--metric: found {source!r}, which all runs share; expected a path of each run, "
            "such as {out}/" + Path(source).name
        )
    name = {"fid": "FID", "regex": named}.get(kind, what)
    return Metric(spec, kind, source, what, better or ("lower" if kind == "fid" else ""), name)


def measure(
    metric: Metric, out: Path, seed: int, said: str, distance: Distance
) -> dict[str, float]:
    """Its numbers, by name: one, or those of a mapping that a function returned.

    Args:
        out: the folder that stands for ``{out}``.
        said: all that the run printed.
        distance: of two folders of images.

    Raises:
        NotMeasured: there is no such file, key, column or line, it cannot be read, or what is there
            is no finite number.
    """
    try:
        return _measured(metric, out, seed, said, distance)
    except (OSError, ValueError, csv.Error) as error:  # bytes that are no text, a folder, no access
        raise NotMeasured(f"{type(error).__name__}: {error}") from error


def _measured(
    metric: Metric, out: Path, seed: int, said: str, distance: Distance
) -> dict[str, float]:
    source = metric.source.replace("{out}", str(out)).replace("{seed}", str(seed))
    if metric.kind == "python":
        return _called(source, metric.what, out)
    if metric.kind == "regex":
        found = re.findall(metric.source, said, re.MULTILINE)
        if not found:
            raise NotMeasured(f"no line of the output matches {metric.source!r}")
        return {metric.name: _number(found[-1], f"the last match of {metric.source!r}")}
    path = Path(source)
    if not path.exists():
        raise NotMeasured(f"found no {path}")
    if metric.kind == "fid":
        return {metric.name: _number(distance(path, metric.what), "the distance")}
    read = _of_json if metric.kind == "json" else _of_csv
    return {metric.name: read(path, metric.what, metric.better)}


Distance = Callable[[Path, str], float]
"""Of a folder of images from real ones, that a word or a folder names."""


def _of_json(path: Path, key: str, better: str) -> float:
    try:
        value = json.loads(path.read_text(encoding=ENCODING))
    except ValueError as error:
        raise NotMeasured(f"{path} is no JSON ({error})") from None
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise NotMeasured(f"{path} has no {key!r}: found no {part!r}") from None
    return _number(value, f"{key!r} in {path}")


def _of_csv(path: Path, column: str, better: str) -> float:
    column, best, _ = column.partition("@best")
    with path.open(newline="", encoding=ENCODING) as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if not rows or column not in rows[0]:
        there = ", ".join(reader.fieldnames or ()) if rows else "nothing below its first line"
        raise NotMeasured(f"{path} has no column {column!r}: found {there}")
    values = [row[column] for row in rows if (row[column] or "").strip()]
    if not values:
        raise NotMeasured(f"{path} has nothing in its column {column!r}")
    if not best:
        return _number(values[-1], f"the last {column!r} in {path}")
    if not better:
        raise NotMeasured(f"{column}@best: write higher: or lower: before the metric")
    numbers = [_number(value, f"a {column!r} in {path}") for value in values]
    return max(numbers) if better == "higher" else min(numbers)


def _digest(module: str) -> str:
    """Of a module's file; "" where it has none or is none, which measuring says."""
    _beside_the_script()
    try:
        spec = importlib.util.find_spec(module)
        file = Path(spec.origin or "") if spec else Path()
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
    except (Exception, SystemExit):  # of the packages that it lies in
        return ""


def _beside_the_script() -> None:
    """A module is looked for where the script is, too."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _called(module: str, function: str, out: Path) -> dict[str, float]:
    _beside_the_script()
    try:
        answer = getattr(importlib.import_module(module), function)(out)
    except (Exception, SystemExit) as error:  # of the user's function, whatever it is
        raise NotMeasured(f"{module}:{function}: {type(error).__name__}: {error}") from error
    numbers = answer if isinstance(answer, Mapping) else {function: answer}
    return {str(name): _number(value, f"{name!r} of {module}") for name, value in numbers.items()}


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise NotMeasured(f"{what} is {value!r}, which is no number") from None
    if not math.isfinite(number):
        raise NotMeasured(f"{what} is {number}")
    return number
