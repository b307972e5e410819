"""One job: trained to its end, from its last checkpoint if there is one.

Rows count once the checkpoint that follows them is there: a killed job goes on from the last
checkpoint, cuts off the rows after it, and ends as if it had not been killed.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from topk_plugin.errors import RunError
from topk_plugin.files import write_atomically, writing
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.files import (
    load_checkpoint,
    locked,
    save_checkpoint,
)
from topk_plugin.reference.runs.records import Draws, Job, Member, Row, Training

LOCK_SECONDS = 10
"""How long a job waits for a lock: the workers of a killed run need a moment to notice."""

SAVE_SECONDS = 60
"""A checkpoint is written at least this often."""

DONE = "done"
"""File of a job that has ended; holds the bytes of its ``metrics.jsonl``."""

SLICES = 200
"""Pieces of a training after which progress is shown and the clock looked at."""


def train(job: Job, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Train a job to its end, from its last checkpoint if there is one.

    Where torchrun started several processes, all of them call it: they train together, and the
    first one reads and writes the folder.

    Args:
        tell: called with the iterations done and their number, in the first process.

    Raises:
        RunError: another process trains it, the disk is full, or its checkpoint is damaged.
        ResumeMismatch: the checkpoint is of other top-k settings.
    """
    first = ranks.rank() == 0
    ranks.at_first(lambda: _made(job.folder))
    with locked(job.folder, LOCK_SECONDS):
        device = torch.device(job.device)
        module = importlib.import_module(f"topk_plugin.reference.{job.trainer}")
        training: Training = module.Training(job.settings, job.members, device)
        checkpoint, journal = job.folder / "checkpoint.pt", job.folder / "metrics.jsonl"
        length = 0
        # of several ranks none has the device of the first one
        saved = ranks.at_first(
            lambda: _last_checkpoint(job, device if ranks.world() == 1 else torch.device("cpu"))
        )
        if saved is not None:
            training.load_state_dict(saved["training"])
            length = saved["journal"]
        else:
            state = _state(training, 0)
            ranks.at_first(lambda: _first_checkpoint(job, state))
        if first:
            with writing(journal):
                journal.touch()
                os.truncate(journal, length)  # rows of iterations that will be trained again
        board = _board(job.folder, training.iteration) if first and job.tensorboard else None
        every, slice_ = job.settings.measure_every, max(1, training.iterations // SLICES)
        saved_at = time.monotonic()
        while training.iteration < training.iterations:
            due = (training.iteration // every + 1) * every
            training.advance(min(training.iteration + slice_, due, training.iterations))
            if first:
                tell(training.iteration, training.iterations)
            finished = training.iteration >= training.iterations
            if training.iteration == due or finished:
                rows = training.measure()
                files = training.files() if isinstance(training, Draws) else {}
                if first:
                    for name, content in files.items():
                        write_atomically(job.folder / name, content)
                    rows = [{**row, "iterations": training.iterations} for row in rows]
                    length = _append(journal, rows)
                    if board is not None:
                        _log(board, rows)
            elif ranks.from_first(time.monotonic() - saved_at < SAVE_SECONDS):
                continue
            state = _state(training, length)
            if first:
                save_checkpoint(checkpoint, state)
            saved_at = time.monotonic()
        if board is not None:
            board.close()
        if first:
            tell(training.iteration, training.iterations)
            write_atomically(job.folder / DONE, str(length).encode())


def _made(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _last_checkpoint(job: Job, device: torch.device) -> dict[str, Any] | None:
    """What a job goes on from, or None where it begins.

    Raises:
        RunError: the checkpoint is damaged, or there are rows without it, or fewer than it knows.
    """
    checkpoint, journal = job.folder / "checkpoint.pt", job.folder / "metrics.jsonl"
    found = journal.stat().st_size if journal.exists() else 0
    if not checkpoint.exists():
        if found:  # no killed job leaves that
            raise RunError(
                f"{journal}: found rows and no checkpoint that goes on from them; they are kept. "
                f"Restore checkpoint.pt, or move {job.folder} away to train it anew"
            )
        return None
    saved = load_checkpoint(checkpoint, device)
    if found < saved["journal"]:
        raise RunError(
            f"{journal}: found {found} bytes, expected the {saved['journal']} that its checkpoint "
            f"knows; restore the file, or delete {job.folder}"
        )
    return saved


def _first_checkpoint(job: Job, state: Mapping[str, Any]) -> None:
    """Written at once, so that a folder that cannot hold it is known before training.

    Raises:
        RunError: too little is free on its disk.
    """
    checkpoint = job.folder / "checkpoint.pt"
    # Adam's moments make three of it; for a moment the old and the new one are there
    needed = 6 * save_checkpoint(checkpoint, state)
    free = shutil.disk_usage(job.folder).free
    if free < needed:
        checkpoint.unlink()  # so that the next command looks again
        raise RunError(
            f"{job.folder}: found {free >> 20} MiB free on its disk, expected "
            f"{(needed >> 20) + 1} MiB for a checkpoint and its successor; free some, or "
            "choose another folder"
        )


def is_done(job: Job) -> bool:
    """Whether a job was trained to its end.

    Raises:
        RunError: it was, and its rows are not all there.
    """
    done, journal = job.folder / DONE, job.folder / "metrics.jsonl"
    if not done.exists():
        return False
    found = journal.stat().st_size if journal.exists() else 0
    if done.read_text() != str(found):
        raise RunError(
            f"{journal}: found {found} bytes, expected the {done.read_text() or 'number of'} bytes "
            f"that {DONE} beside it says; restore the file, or move {job.folder} away to train anew"
        )
    return True


def _state(training: Training, length: int) -> dict[str, Any]:
    return {"training": training.state_dict(), "journal": length}


def _append(journal: Path, rows: Sequence[Row]) -> int:
    """Appends rows and returns the file's length."""
    with writing(journal), journal.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _board(folder: Path, iteration: int) -> Any:
    """A log for TensorBoard; what an earlier one has from this iteration on is not shown."""
    from torch.utils.tensorboard import SummaryWriter  # not above: a package of its own

    return SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)


def _log(board: Any, rows: Sequence[Row]) -> None:
    """All numbers of rows, by kind and name."""
    for row in rows:
        member = " ".join(str(row[name]) for name in Member._fields)
        for name in row.keys() - {*Member._fields, "iteration", "iterations"}:
            if type(row[name]) in (int, float):
                board.add_scalar(f"{row['kind']}/{name}/{member}", row[name], row["iteration"])
    board.flush()
