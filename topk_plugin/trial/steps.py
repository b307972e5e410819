"""The log of a run, and its figure: k, kept and dropped scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topk_plugin.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]


def read_log(path: Path) -> list[Record]:
    """The records of a `topk run --log` file, one for each generator step, while it grows too.

    Raises:
        ConfigError: there is no such file, it has no step yet, or it is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: found nothing to read ({error}), expected a file of `topk run --log`"
        ) from None
    whole = lines[:-1]  # of a run that goes on the last line may be half written
    try:
        records = [json.loads(line) for line in whole]
        fits = all({"step", "epoch", "batch", "k", "kept_score"} <= row.keys() for row in records)
    except (ValueError, AttributeError):
        fits = False
    if not fits:
        raise ConfigError(
            f"{path}: found other lines than one record a generator step, expected a file of "
            "`topk run --log`; correct the path"
        )
    if not records:
        raise ConfigError(
            f"{path}: found no generator step, expected one at least; wait for the first, or look "
            "at what the run said"
        )
    return records


def by_training(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each training in a log by what tells it from others, in order of appearance.

    "" is the first training of the process that was launched; others are "training-2",
    "process-4711" of one that it started, "process-4711-training-2".
    """
    found: dict[str, list[Record]] = {}
    for row in records:
        parts = [f"{what}-{row[what]}" for what in ("process", "training") if what in row]
        found.setdefault("-".join(parts), []).append(row)
    return found


def figure_paths(logs: Sequence[Path], folder: Path | None) -> list[Path]:
    """Where the figures of logs go, without a suffix: beside each, or into a folder.

    There the names of as many folders above a log are in that of its figure as tell them apart.

    Args:
        logs: different ones.
    """
    paths = [log.with_suffix("") for log in logs]
    if len(set(paths)) < len(paths):
        paths = [*logs]  # the suffixes tell them apart
    if folder is None:
        return paths
    parts = [path.absolute().parts[1:] for path in paths]
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return [folder / name for name in names]


def steps_figure(records: Sequence[Record]) -> Figure:
    """k, the mean score of kept and of dropped rows, and that of the worst kept, over steps.

    Faint lines are single steps, strong lines epoch means, grey verticals ends of epochs. The
    dropped rows' line starts where k first falls below the batch size.

    Args:
        records: of one training.
    """
    from matplotlib.figure import Figure

    epochs = _by_epoch(records)
    middles = [(rows[0]["step"] + rows[-1]["step"]) / 2 for rows in epochs]
    ends = [rows[-1]["step"] + 0.5 for rows in epochs[:-1]]
    steps = [row["step"] for row in records]

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.6])
    for panel in (top, bottom):
        for end in ends:
            panel.axvline(end, color="0.9", linewidth=0.6, zorder=0)

    batch = max(row["batch"] for row in records)
    top.step(steps, [row["k"] for row in records], where="mid", color="black")
    top.set_ylim(0, 1.08 * batch)
    top.set_ylabel(f"k of {batch}")
    top.set_title("rows of the batch that train the generator")

    for key, color in {"kept": "tab:blue", "dropped": "tab:orange"}.items():
        field = f"{key}_score"
        single = [_number(row[field]) for row in records]
        bottom.plot(steps, single, color=color, alpha=0.25, linewidth=0.7)
        means = [_mean(row[field] for row in rows) for rows in epochs]
        bottom.plot(middles, means, color=color, marker=".", label=f"{key} rows")
    edge = [
        _number(row.get("threshold")) if row["k"] < row["batch"] else math.nan for row in records
    ]
    bottom.plot(steps, edge, color="0.4", linestyle=":", linewidth=0.9, label="worst row kept")
    bottom.set_ylabel("critic's score")
    bottom.set_xlabel("generator step")
    bottom.legend(loc="best")
    return figure


def _by_epoch(records: Iterable[Record]) -> list[list[Record]]:
    """Records of one epoch together, in the order of the log."""
    epochs: dict[int, list[Record]] = {}
    for row in records:
        epochs.setdefault(row["epoch"], []).append(row)
    return list(epochs.values())


def _number(score: float | None) -> float:
    """A score to plot: NaN, which matplotlib leaves out, where no row was dropped."""
    return math.nan if score is None else score


def _mean(scores: Iterable[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else math.nan
