"""Processes that a launched script starts: they inherit top-k, and report to the launcher.

A Python that starts anew (spawn, forkserver, subprocess, the ranks of torchrun) finds the launch in
TOPK_ACTIVATION and, at the head of PYTHONPATH, the folder ``startup``: its sitecustomize.py
switches top-k on when the process imports torch. A forked process has it in memory. Out of reach
are interpreters started with -I, -E or -S, or in an environment without those two variables.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import util
from pathlib import Path
from typing import Protocol

from topk_plugin import errors
from topk_plugin.errors import TopKError
from topk_plugin.loop.traced import refusal

VARIABLE = "TOPK_ACTIVATION"
STARTUP = str(Path(__file__).with_name("startup"))


@contextlib.contextmanager
def environment(activation: str | None) -> Iterator[None]:
    """What Python processes started inside inherit; None: nothing, not even from further out."""
    before = {name: os.environ.get(name) for name in (VARIABLE, "PYTHONPATH")}
    found = before["PYTHONPATH"]
    path = [entry for entry in found.split(os.pathsep) if entry != STARTUP] if found else []
    if activation is not None:
        path.insert(0, STARTUP)
    _set(VARIABLE, activation)
    _set("PYTHONPATH", os.pathsep.join(path) if path else None)
    try:
        yield
    finally:
        for name, value in before.items():
            _set(name, value)


def _set(name: str, value: str | None) -> None:
    if value is not None:
        os.environ[name] = value
    else:
        os.environ.pop(name, None)


@dataclass(frozen=True)
class ChildReport:
    """What a process in which an optimizer stepped tells the launcher."""

    process: str  # such as "process 1234" or "rank 1"
    steps: int = 0  # generator steps gated
    ended: bool = False  # the last word; else optimizers step there, or it was killed
    kind: str | None = None  # of a TopKError: its class
    message: str = ""
    fatal: bool = False  # the process ended by it

    @property
    def error(self) -> TopKError | None:
        """The error that the process ended in, if any."""
        if self.kind is None:
            return None
        cls: type[TopKError] = getattr(errors, self.kind, TopKError)
        return cls(f"in {self.process}: {self.message}")


class Reports:
    """A folder where each process leaves one report; the launcher makes and removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextlib.contextmanager
    def collected(cls) -> Iterator[Reports]:
        """A new folder, removed in the end by the process that made it, not by its forks."""
        maker, folder = os.getpid(), tempfile.mkdtemp(prefix="topk-")
        try:
            yield cls(Path(folder))
        finally:
            if os.getpid() == maker:
                shutil.rmtree(folder, ignore_errors=True)

    def write(self, name: str, report: ChildReport) -> None:
        """Leave a report, in place of one of that name.

        Raises:
            OSError: the launcher has ended.
        """
        draft = self.folder / f"{name}.draft"
        draft.write_text(json.dumps(asdict(report)), encoding="utf-8")
        draft.replace(self.folder / f"{name}.json")

    def read(self) -> list[ChildReport]:
        """All reports, in the order of their names."""
        files = sorted(self.folder.glob("*.json"))
        return [ChildReport(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def report_name() -> str:
    """A name that no other process has, not even a later one of the same number."""
    return f"{os.getpid()}-{time.time_ns()}"


class Member(Protocol):
    """What has to hear of this process's forks, and of its end if it is a child."""

    def forking(self) -> None:
        """This process is about to be forked."""

    def forked(self) -> None:
        """This process is a fork, and a child from now on."""

    def end(self) -> None:
        """This process, a child, ends; may come twice."""


_members: weakref.WeakSet[Member] = weakref.WeakSet()


def follow(member: Member) -> None:
    """Tell ``member`` of every fork of this process, and at its end each fork's copy of it."""
    _members.add(member)
    _watch_forks()
    # a child that multiprocessing forked forgets the finalizers that it began with
    util.register_after_fork(member, tell_end)


def unfollow(member: Member) -> None:
    """Undo :func:`follow`."""
    _members.discard(member)


def tell_end(member: Member) -> None:
    """Tell ``member`` when this process ends; multiprocessing's leave by ``os._exit``."""
    util.Finalize(None, member.end, exitpriority=0)


@functools.cache  # there is no unregistering
def _watch_forks() -> None:
    os.register_at_fork(before=_forking, after_in_child=_forked)


def _forking() -> None:
    for member in list(_members):
        member.forking()


def _forked() -> None:
    for member in list(_members):
        member.forked()
        tell_end(member)


def ending_exception() -> BaseException | None:
    """The exception by which this process is ending, as far as can be told."""
    error = sys.exc_info()[1] or getattr(sys, "last_value", None)
    success = isinstance(error, SystemExit) and error.code in (None, 0)
    return None if success else error


def topk_error(error: BaseException | None) -> TopKError | None:
    """The TopKError that ``error`` is, or that it was raised from or in the handling of."""
    first = error
    while error is not None and not isinstance(error, TopKError):
        error = error.__cause__ or error.__context__
    return error or refusal(first)
