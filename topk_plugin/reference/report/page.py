"""`topk report DIR [DIR...]`: tables and figures of runs' folders, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from topk_plugin.errors import RunError
from topk_plugin.extras import needed
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.report.ablation import table5
from topk_plugin.reference.report.anomalies import table2
from topk_plugin.reference.report.arms import named, span
from topk_plugin.reference.report.blocks import Block, Drawing, Table, listed
from topk_plugin.reference.report.distances import models_of_images
from topk_plugin.reference.report.folder import PRESETS, Run, left_out, read_run
from topk_plugin.reference.report.mixtures import mixtures, probe, study
from topk_plugin.reference.statistics import Paper


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
        blocks = [
            *header(run, experiment.open),
            *SECTIONS[experiment.trainer](run, experiment.paper),
        ]
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
    yield listed(lines)
    if out := left_out(run):
        yield f"Left out: {len(out)} of {len(run.members)} members, which no number counts:"
        yield listed(f"{named(run, member)}: {why}" for member, why in out.items())
    if run.cut:
        yield (
            f"The last line of {', '.join(run.cut)} is not complete and is left out: the job was "
            "killed, or is writing it now."
        )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _images(run: Run, paper: Paper) -> Iterator[Block]:
    return table5(run, paper) if run.about.ablation else models_of_images(run, paper)


SECTIONS: dict[str, Callable[[Run, Paper], Iterator[Block]]] = {
    "mixture": mixtures,
    "study": study,
    "probe": probe,
    "anomaly": table2,
    "images": _images,
}
"""What is reported of each trainer's experiments."""


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
