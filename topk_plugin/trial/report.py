"""The report of a trial: a table, a figure and a plain sentence for each metric."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topk_plugin.files import write_atomically, writing
from topk_plugin.pairs import Summary, decimals, summary, telling, with_interval
from topk_plugin.streams import count
from topk_plugin.trial.alike import alike, beginnings, of_one_seed
from topk_plugin.trial.arms import PLAIN
from topk_plugin.trial.measured import Measured, measured
from topk_plugin.trial.metrics import Distance, Metric
from topk_plugin.trial.outcome import Outcome, outcomes, ratio, sentence
from topk_plugin.trial.runs import Run, Trial, failures, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def written(
    folder: Path, runs: Sequence[Run], metrics: Sequence[Metric], distance: Distance, command: str
) -> str:
    """Writes report.md, report.json and trial.png, and returns what report.md says."""
    found = measured(runs, metrics, distance)
    how = alike(found.values, beginnings(runs))
    shown = found._replace(values=of_one_seed(found.values)) if how else found
    note = _one_seed(how, runs[0].trial) if how else ""
    rows = outcomes(shown.values, found.better, bool(how))
    costs = {what: _costs(runs, what) for what in ("seconds", "memory")}
    drawn = any(row.difference is not None for row in rows)
    text = "\n".join(_lines(runs, shown, rows, costs, command, drawn, note)) + "\n"
    write_atomically(folder / "report.md", text.encode("utf-8", "backslashreplace"))
    as_json = _as_json(rows, found, costs) | {"alike": note or None}
    write_json(folder / "report.json", as_json)
    figure = folder / "trial.png"
    with writing(figure):
        figure.unlink(missing_ok=True)  # of what was measured before
        if drawn:
            pairs_figure([row for row in rows if row.difference is not None]).savefig(
                figure, dpi=120
            )
    return text


def _lines(
    runs: Sequence[Run], found: Measured, rows: Sequence[Outcome],
    costs: Mapping[str, Mapping[str, Summary]], command: str, drawn: bool, note: str,
) -> list[str]:  # fmt: skip
    arms = list(dict.fromkeys(run.arm.name for run in runs))
    several = len(arms) > 2
    lines = ["# Does top-k help?", "", f"`{command}`", "", *[f"- {note}"] * bool(note)]
    for row in rows:
        said = sentence(row)
        lines += [f"- {row.arm}: {said}" if several else f"- {said}"]
    failed = failures(runs)
    lines += [f"- {run.name} failed with status {status}." for run, status, _ in failed]
    lines += [f"- {line}" for line in _absences(found)]
    lines += ["", "| metric | arm | mean ± std | difference [95%] | seeds |", "|" + " --- |" * 5]
    for name, by_arm in found.values.items():
        points = [point for values in by_arm.values() if (point := summary(values.values()))]
        digits = decimals(points)
        for arm in arms:
            own = summary(by_arm.get(arm, {}).values())
            difference = seeds = ""
            for row in rows:
                if (row.metric, row.arm) == (name, arm) and row.difference is not None:
                    own_digits = telling(row.difference, digits)
                    difference = with_interval(row.difference, own_digits)
                    side = "lower" if row.difference.mean < 0 else "higher"
                    seeds = f"{side} in {row.same_side} of {row.difference.n}"
            shown = name.replace("|", "\\|")
            lines.append(f"| {shown} | {arm} | {_shown(own, digits)} | {difference} | {seeds} |")
    lines.append("")
    for what, unit in (("seconds", "Time"), ("memory", "Peak memory of the host")):
        for arm, point in costs[what].items():
            shown = f"{point.mean:.3f}"
            if point.interval is not None:
                shown += " [{:.3f}, {:.3f}]".format(*point.interval)
            lines.append(f"{unit} of {arm}: {shown} of that without it.  ")
    header = next((words for run in runs if (words := run.words("top-k ACTIVE"))), "")
    lines += ["", f"`{header}`"] * bool(header)
    trial = runs[0].trial
    seeded = trial.seeds_script or trial.takes_seed
    lines += [
        "",
        f"Pairs share {'a' if seeded else 'no'} seed; intervals are Student's t over seeds. "
        f"Python {platform.python_version()}, {platform.machine()}, "
        f"{count(trial.threads, 'thread')} a run.",
    ]
    for run, _, last in failed:
        lines += ["", f"The last lines of {run.name}:", "", "```", last, "```"]
    return lines + (["", "![each seed's pair](trial.png)"] if drawn else [])


def _one_seed(how: str, trial: Trial) -> str:
    """What is said where the seeds are one."""
    remedy = "put {seed} into the command"
    if trial.takes_seed:
        remedy = "let it draw from the {seed} that the command gives it"
    return f"All seeds {how} alike, so they count as one: the script seeds itself; {remedy}."


def _absences(found: Measured) -> list[str]:
    """Runs without a number, a line for each metric."""
    lines = []
    for spec in dict.fromkeys(spec for _, spec, _ in found.missing):
        (first, why), *others = [(run, why) for run, of, why in found.missing if of == spec]
        more = f" and {len(others)} more" if others else ""
        lines.append(f"{spec}: no number of {first.name}{more}: {why}.")
    return lines


def _shown(point: Summary | None, digits: int) -> str:
    if point is None:
        return "-"
    mean = f"{point.mean:.{digits}f}"
    return mean if point.std is None else f"{mean} ± {point.std:.{digits}f}"


def _costs(runs: Sequence[Run], what: str) -> dict[str, Summary]:
    """Ratios of seconds or bytes to those of the same seeds without top-k, by arm."""
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        result = run.result()
        if result is not None and result["status"] == 0:
            values.setdefault(run.arm.name, {})[run.seed] = result[what]
    plain = values.pop(PLAIN, {})
    ratios = {arm: ratio(plain, of_arm) for arm, of_arm in values.items()}
    return {arm: point for arm, point in ratios.items() if point is not None}


def _as_json(
    rows: Sequence[Outcome], found: Measured, costs: Mapping[str, Mapping[str, Summary]]
) -> dict[str, Any]:
    return {
        "values": found.values,
        "differences": [
            {
                "metric": row.metric, "arm": row.arm, "better": row.better or None,
                "seeds": row.seeds, "mean": row.difference.mean, "std": row.difference.std,
                "interval": row.difference.interval, "says": sentence(row),
            }
            for row in rows
            if row.difference is not None
        ],
        "missing": [[run.name, spec, why] for run, spec, why in found.missing],
        "ratios": {
            what: {arm: point._asdict() for arm, point in of.items()} for what, of in costs.items()
        },
    }  # fmt: skip


def pairs_figure(rows: Sequence[Outcome]) -> Figure:
    """A panel for each metric and arm; each line is a seed, from without to with top-k."""
    from matplotlib.figure import Figure

    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[len(rows) :]:
        panel.set_visible(False)
    for panel, row in zip(panels, rows, strict=False):
        for plain, topk in row.pairs:
            color = "0.6"
            if plain != topk:
                color = "tab:blue" if topk < plain else "tab:orange"
            panel.plot([0, 1], [plain, topk], color=color, marker="o", markersize=4)
        panel.set_xticks([0, 1], [PLAIN, _literal(row.arm)])
        panel.set_xlim(-0.25, 1.25)
        better = f" ({row.better} is better)" if row.better else ""
        panel.set_title(_literal(textwrap.fill(f"{row.metric}{better}", 44)), fontsize=9)
    return figure


def _literal(text: str) -> str:
    """For matplotlib, to which a dollar begins a formula."""
    return text.replace("$", r"\$")
