"""What a person sees while jobs train: bars on a terminal, a line each tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topk_plugin.reference.runs.records import Job


def label(job: Job) -> str:
    """Cells, arms and seeds of a job, in short."""
    parts = []
    for name, values in zip(("", "", "seed "), zip(*job.members, strict=True), strict=True):
        distinct = list(dict.fromkeys(values))
        parts.append(name + ", ".join(map(str, distinct)))
    return f"{job.folder.name}: {', '.join(parts)}"


def preparing() -> Callable[[str, int, int], None]:
    """A function that is told what is done before training, how much of it, and of how much."""
    console = Console(stderr=True)
    tenths: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > tenths.get(what, -1):
            tenths[what] = tenth
            line = f"{what}, {done:,} of {total:,} images"
            if console.is_terminal and 0 < done < total:
                console.print(line, end="\r", markup=False, highlight=False)
            else:
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    return tell


@contextmanager
def shown(jobs: Sequence[Job]) -> Iterator[Callable[[int, int, int], None]]:
    """A function that is told a job's index, its iterations done and their number."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            total = progress.add_task(f"all {len(jobs)} jobs", total=len(jobs))
            tasks: dict[int, object] = {}
            ended: set[int] = set()

            def show(index: int, done: int, length: int) -> None:
                if index not in tasks:
                    tasks[index] = progress.add_task(label(jobs[index]), total=length)
                progress.update(tasks[index], completed=done)  # type: ignore[arg-type]
                if done >= length and index not in ended:
                    ended.add(index)
                    progress.update(tasks[index], visible=False)  # type: ignore[arg-type]
                    progress.update(total, completed=len(ended))

            yield show
        return
    tenths: dict[int, int] = {}
    started = time.monotonic()

    def tell(index: int, done: int, length: int) -> None:
        tenth = 10 * done // length
        if tenth > tenths.get(index, 0):
            tenths[index] = tenth
            seconds = time.monotonic() - started
            console.print(
                f"{seconds:7.0f} s  {label(jobs[index])}: {done} of {length} iterations",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    yield tell
