"""The runs of a trial: each in a folder of its own, several at a time, none twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.extras import needed
from topk_plugin.files import PARTIAL, write_atomically
from topk_plugin.trial.arms import PLAIN, Arm

TRIAL, RUN, OUTPUT, LOG = "trial.json", "run.json", "output.txt", "topk.jsonl"
LOCK = ".lock"
ARMS = "arms"
"""In TRIAL, the settings of each arm."""

LAUNCHER = re.compile(
    r"^top-k (\((process|rank) \d+\) )?(ACTIVE|NOT ACTIVE|verdict|note)\b.*\n?", re.M
)
"""A line that `topk run` printed, and no script."""

LAST_LINES = 12
"""Of what a failed script printed, as many are shown."""


@dataclass(frozen=True)
class Trial:
    """What is trained, apart from the arms and how many seeds.

    folder: of the trial.
    flags: of `topk run`, for all arms.
    script: and its arguments, in which {seed} and {out} stand for those of a run.
    seeds_script: the launcher seeds a script whose command has no {seed}.
    threads: of each run.
    """

    folder: Path
    flags: tuple[str, ...]
    script: tuple[str, ...]
    seeds_script: bool
    threads: int

    @property
    def takes_seed(self) -> bool:
        """The command says the seed."""
        return any("{seed}" in word for word in self.script)

    def saved(self) -> dict[str, Any]:
        """What all runs of one folder have in common."""
        return {
            "flags": [*self.flags], "script": [*self.script], "seeds_script": self.seeds_script,
            "threads": self.threads, "folder": os.getcwd(),
        }  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training."""

    trial: Trial
    arm: Arm
    seed: int

    @property
    def folder(self) -> Path:
        """Where its output, its log and its result are."""
        arm = quote(self.arm.name, safe="=,+")  # no two arms the same
        return self.trial.folder / "runs" / arm / f"seed-{self.seed}"

    @property
    def out(self) -> Path:
        """What ``{out}`` stands for: the script's own files."""
        return self.folder / "out"

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.arm.name}, seed {self.seed}"

    def command(self) -> list[str]:
        """What is started."""
        seeded = self.trial.seeds_script and not self.trial.takes_seed
        seed = str(self.seed) if seeded else "-"
        child = [sys.executable, "-m", "topk_plugin.trial.child", str(os.getpid()), seed]
        log = [] if self.arm.name == PLAIN else ["--log", str(self.folder / LOG)]
        words = [
            word.replace("{seed}", str(self.seed)).replace("{out}", str(self.out))
            for word in self.trial.script
        ]
        return [*child, "run", *self.trial.flags, *self.arm.flags, *log, "--", *words]

    def result(self) -> dict[str, Any] | None:
        """What it ended with: its status, seconds and memory; None: it has not ended."""
        try:
            found: dict[str, Any] = json.loads((self.folder / RUN).read_text())
        except (OSError, ValueError):  # killed while it was written
            return None
        return found

    @property
    def has_ended(self) -> bool:
        """With status 0; one that failed is run again."""
        result = self.result()
        return result is not None and result["status"] == 0

    def said(self) -> str:
        """All that it printed."""
        try:
            return (self.folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def said_by_script(self) -> str:
        """That without the lines of the launcher, which are others in each arm."""
        return LAUNCHER.sub("", self.said())

    def words(self, of: str) -> str:
        """The line of the launcher's that begins so: "top-k ACTIVE", "top-k verdict"."""
        lines = [line for line in self.said().splitlines() if of in line]
        return lines[-1] if lines else ""


@contextmanager
def opened(trial: Trial, arms: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[None]:
    """The trial's folder, made where there is none, and held against other processes.

    Args:
        arms: the settings of each, wherever they were said.

    Raises:
        ConfigError: it is no trial's, or that of another command or other settings.
        RunError: another process trains there.
    """
    file = trial.folder / TRIAL
    filelock = needed("filelock", "trials")
    lock = filelock.FileLock(trial.folder / LOCK)
    begun = {LOCK, f"{TRIAL}{PARTIAL}"}  # all that a process leaves that was killed so early
    try:
        trial.folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() and {one.name for one in trial.folder.iterdir()} - begun:
            raise ConfigError(
                f"--out: {trial.folder} holds files and no trial; expected "
                "a trial, or an empty folder: choose another one"
            )
        lock.acquire(timeout=5)
    except filelock.Timeout:
        raise RunError(
            f"{trial.folder}: another process trains here; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--out: {trial.folder} can be no folder of a trial ({error.strerror}); choose another "
            "one"
        ) from None
    with lock:
        saved, arms = trial.saved(), arms or {}
        before = json.loads(file.read_text()) if file.exists() else saved
        known: dict[str, Mapping[str, Any]] = before.get(ARMS, {})
        differ = _differing(before, saved)
        for arm in known.keys() & arms.keys():
            differ += [f"{arm}, {line}" for line in _differing(known[arm], arms[arm])]
        if differ:
            raise ConfigError(
                f"--out: {trial.folder} is the trial of another command, so its runs cannot be "
                f"compared with these; choose another folder. Found {'; '.join(differ)}"
            )
        write_json(file, saved | {ARMS: {**arms, **known}})
        yield


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was said before and is otherwise now; a name that is new is no difference."""
    return [
        f"{name}: {before[name]!r} there, {value!r} now"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def threads_of(folder: Path) -> int | None:
    """Of each run of a trial that began before; None: there is none."""
    try:
        return int(json.loads((folder / TRIAL).read_text())["threads"])
    except (OSError, ValueError, KeyError):
        return None


def train(runs: Sequence[Run], workers: int, tell: Callable[[Run], None]) -> None:
    """Trains those that have not ended, ``workers`` at a time.

    A script that fails ends no other run. Interrupted, it stops them all, and what has ended is
    kept.

    Args:
        tell: told of each run when it has ended.
    """
    left = [run for run in runs if not run.has_ended]
    started = _Started()
    with ThreadPoolExecutor(workers) as pool:
        waiting: dict[Future[None], Run] = {}
        try:
            for run in left:
                waiting[pool.submit(_train, run, started)] = run
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    run = waiting.pop(future)
                    future.result()
                    tell(run)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            started.stop()
            raise


class _Started:
    """The processes of runs: from one moment on none is started, and those that were are ended."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopped = False
        self._lock = threading.Lock()

    def start(self, command: Sequence[str], **how: Any) -> subprocess.Popen[bytes] | None:
        """As ``subprocess.Popen`` does; None where all was stopped."""
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(command, **how)
            self._processes.append(process)
            return process

    def stop(self) -> None:
        """Ends them all."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                if process.returncode is None:
                    process.terminate()


def _train(run: Run, started: _Started) -> None:
    shutil.rmtree(run.folder, ignore_errors=True)  # of a process that was killed
    run.out.mkdir(parents=True)
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": str(run.seed)}
    environment["OMP_NUM_THREADS"] = str(run.trial.threads)
    start = time.monotonic()
    with (run.folder / OUTPUT).open("wb") as output:
        process = started.start(
            run.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
        if process is None:
            return
        _, state, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(state)
    kilo = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    result = {
        "status": process.returncode,
        "seconds": time.monotonic() - start,
        "memory": usage.ru_maxrss * kilo,
        "command": run.command()[5:],
    }
    write_json(run.folder / RUN, result)


def failures(runs: Sequence[Run]) -> list[tuple[Run, int, str]]:
    """Those that failed, each with its status and the last that it printed."""
    found = []
    for run in runs:
        result = run.result()
        if result is not None and result["status"] != 0:
            last = "\n".join(run.said().rstrip().splitlines()[-LAST_LINES:])
            found.append((run, int(result["status"]), last))
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole, or not at all; a RunError where the disk is full or the folder cannot be written."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
