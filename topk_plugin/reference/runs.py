"""Runs of the reference experiments: jobs, atomic checkpoints, exact resume, progress.

A run is a folder: ``run.json`` says what was asked for, and each of its jobs, a training that is
resumed by itself, has a folder with ``metrics.jsonl`` (one JSON row a line) and
``checkpoint.pt``. Rows count once the checkpoint that follows them is there: a killed job goes on
from the last checkpoint, cuts off the rows after it, and ends as if it had not been killed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import io
import json
import multiprocessing
import os
import platform
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import typing
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import yaml

import topk_plugin
from topk_plugin.errors import ConfigError, ResumeMismatch, RunError, TopKError, unknown_name
from topk_plugin.reference import ranks
from topk_plugin.reference.experiments import EXPERIMENTS, RESULTS, Experiment

Row = dict[str, Any]
"""One line of a ``metrics.jsonl``: cell, arm, seed, iteration, kind, and what was measured."""

Tell = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""

LOCK_SECONDS = 10
"""How long a job waits for a lock: the workers of a killed run need a moment to notice."""

SAVE_SECONDS = 60
"""A checkpoint is written at least this often."""

RUN = "run.json"

DONE = "done"
"""File of a job that has ended; holds the bytes of its ``metrics.jsonl``."""

OF_DATA = ("dataset", "data", "download")
"""Settings that are flags of the command."""

GROWS = ("cells", "arms", "seeds")
"""What a later command may add to a run: what is there stays, and only the new is trained."""

WHERE = ("data", "download", "inception", "decoders")
"""Settings that say where data and weights lie, which may change: what they are is in the plan."""

PARTIAL = ".partial"
"""Ends the name of a file that is being written; a killed process leaves one behind."""

SLICES = 200
"""Pieces of a training after which progress is shown and the clock looked at."""


class Member(NamedTuple):
    """One training of one pair of networks."""

    cell: int  # what a row of the paper's table is: a number of modes, a held-out digit
    arm: str
    seed: int


class Training(Protocol):
    """One job in training; what ``Training`` of mixture.py, probe.py and anomaly.py do."""

    iterations: int
    iteration: int

    def advance(self, until: int) -> None:
        """Trains up to that iteration, at most to the last one."""

    def measure(self) -> list[Row]:
        """Rows at the present iteration, without a trace in what follows."""

    def state_dict(self) -> dict[str, Any]:
        """All that the rest depends on, for ``torch.load(weights_only=True)``."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""


@runtime_checkable
class Draws(Protocol):
    """A training that leaves pictures, too."""

    def files(self) -> Mapping[str, bytes]:
        """Files for the job's folder at the present iteration, by name."""


class Job(NamedTuple):
    """What one process trains at a time."""

    folder: Path
    trainer: str  # module of topk_plugin.reference
    settings: Any
    members: list[Member]
    device: str
    tensorboard: bool = False  # whether rows are also logged for TensorBoard


# --- one job ------------------------------------------------------------------------------------


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that is full, or a folder that cannot be written, as a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: not written ({error.strerror}). Free space or correct the permissions, then "
            "give the same command again: it goes on from the last checkpoint, which is whole"
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any time it is either the old one or the new one, both whole.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    with _writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the rename itself has to reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> int:
    """Write a checkpoint atomically; returns its bytes."""
    # by way of memory: a file that torch.save cannot finish may take the process with it
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(path, content.getvalue())
    return content.tell()


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if (part := file.testzip()) is not None:  # torch.load does not look at checksums
                raise ValueError(f"wrong checksum of {part}")
        saved: dict[str, Any] = torch.load(path, device, weights_only=True)
        return {name: saved[name] for name in ("training", "journal")}
    except Exception as error:  # whatever a damaged file makes of the unpickler
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise RunError(
            f"{path}: cannot be read ({why}), expected a checkpoint "
            "of this package; delete its folder, and the same command trains this part anew"
        ) from None


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
    with _locked(job.folder, LOCK_SECONDS):
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
            with _writing(journal):
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
    with _writing(folder):
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
    with _writing(journal), journal.open("a", encoding="utf-8") as file:
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


@contextmanager
def _locked(folder: Path, seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")

    def acquire() -> None:
        with _writing(folder):
            try:
                lock.acquire(timeout=seconds)
            except Timeout:
                raise RunError(
                    f"{folder}: another process trains here; wait for it, or choose another folder"
                ) from None

    ranks.at_first(acquire)
    try:
        yield
    finally:
        lock.release()


# --- many jobs ----------------------------------------------------------------------------------


def train_all(jobs: Sequence[Job], workers: int, show: Callable[[int, int, int], None]) -> None:
    """Train jobs, ``workers`` at a time, each in a process of its own if there are several.

    Args:
        show: called with a job's index, its iterations done, and their number.

    Raises:
        TopKError: of the first job that failed; the others are stopped, and can be resumed.
    """
    if len(jobs) == 1 or workers == 1 or ranks.world() > 1:
        threads = torch.get_num_threads()
        if jobs[0].device == "cpu":
            torch.set_num_threads(1)  # as in a worker, so that rounding is the same
        try:
            for index, job in enumerate(jobs):
                with _named(job):
                    train(job, lambda done, total, index=index: show(index, done, total))  # type: ignore[misc]
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.Queue(), context.Queue()
    for item in [*enumerate(jobs), *[None] * workers]:
        waiting.put(item)
    processes = [
        context.Process(target=_work, args=(waiting, messages), daemon=True)
        for _ in range(min(workers, len(jobs)))
    ]
    for process in processes:
        process.start()
    left = len(jobs)
    try:
        while left:
            alive = any(process.is_alive() for process in processes)  # asked before the messages
            try:
                index, message = messages.get(timeout=1)
            except queue.Empty:
                if not alive:
                    raise RunError(
                        "the worker processes ended without a word (killed, or out of memory); "
                        "give the same command again: it goes on from the last checkpoints"
                    ) from None
                continue
            if message is None:
                left -= 1
            elif isinstance(message, tuple):
                show(index, *message)
            else:
                raise message
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def keep_memory() -> None:
    """Lets glibc keep the blocks that a step frees, for the next step; other libraries are left.

    To take a MiB or two from the system anew for each layer costs the stacked trainer some 4%.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the most that it takes
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _work(waiting: Any, messages: Any) -> None:
    """A worker: trains jobs until there are none, and ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    keep_memory()
    torch.set_num_threads(1)
    while (item := waiting.get()) is not None:
        index, job = item
        try:
            with _named(job):
                train(job, lambda done, total: messages.put((index, (done, total))))  # noqa: B023
            messages.put((index, None))
        except TopKError as error:
            messages.put((index, error))


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Whatever else ends a job, such as too little memory, as an error that names it."""
    try:
        yield
    except TopKError:
        raise
    except Exception as error:
        raise RunError(f"{job.folder}: {type(error).__name__}: {error}") from error


# --- a run --------------------------------------------------------------------------------------


def settings_of(experiment: Experiment, preset: str, overrides: Mapping[str, str]) -> Any:
    """The trainer's settings: its defaults, the preset's, and ``overrides`` (name: text).

    Raises:
        ConfigError: an unknown preset or setting, or a value of the wrong type or out of range.
    """
    if preset not in experiment.presets:
        raise unknown_name(f"--preset {preset}", "preset", preset, experiment.presets)
    module = importlib.import_module(f"topk_plugin.reference.{experiment.trainer}")
    types = typing.get_type_hints(module.Settings)
    known = [field.name for field in dataclasses.fields(module.Settings)]
    values = dict(experiment.presets[preset].settings)
    for name, text in overrides.items():
        if name in OF_DATA and name not in known:
            raise ConfigError(
                f"--{name}: found {text!r}, expected nothing: {experiment.title} has no data set; "
                "leave the flag out"
            )
        if name not in known:
            raise unknown_name(f"--set {name}", "setting", name, known)
        values[name] = _parsed(name, text, types[name])
    return module.Settings(**values)


def _parsed(name: str, text: str, kind: Any) -> Any:
    accepted = typing.get_args(kind) or (kind,)
    if str in accepted:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if isinstance(value, str) and float in accepted:  # to YAML 1e-4 is text
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) in accepted:
        return value
    if float in accepted and type(value) is int:
        return float(value)
    names = " or ".join("null" if each is type(None) else each.__name__ for each in accepted)
    raise ConfigError(f"--set {name}: found {text!r}, expected {names}")


class Request(NamedTuple):
    """What `topk reproduce` was asked for; None leaves it to the preset."""

    result: str  # of experiments.RESULTS
    preset: str = "smoke"
    seeds: int | None = None
    cells: Sequence[int] | None = None
    arms: Sequence[str] | None = None
    overrides: Mapping[str, str] = {}
    out: Path | None = None
    device: str | None = None  # "cpu" or "cuda"; None: CUDA where there is one
    workers: int | None = None  # processes; None: one a core, or one on a GPU
    command: str = ""
    tensorboard: bool = False


def reproduce(
    request: Request,
    show: Callable[[Sequence[Job]], Any] | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Path:
    """Train what a result of the paper needs, as far as it is not there yet; returns its folder.

    Args:
        show: makes of the jobs a context manager that gives the function which
            :func:`train_all` calls; without it nothing is shown.
        tell: called with what is done before training, how much of it, and of how much.

    Raises:
        ConfigError: an unknown result, preset, setting, cell or arm, a folder that cannot be
            written or is something else, or data that are missing.
        ResumeMismatch: the folder holds a run of other settings.
        RunError: see :func:`train`.
    """
    if request.result not in RESULTS:
        raise unknown_name(f"topk reproduce {request.result}", "result", request.result, RESULTS)
    name = RESULTS[request.result]
    experiment = EXPERIMENTS[name]
    settings = settings_of(experiment, request.preset, request.overrides)
    preset = experiment.presets[request.preset]
    seeds = preset.seeds if request.seeds is None else request.seeds
    for flag, number in (("--seeds", seeds), ("--workers", request.workers)):
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: found {number}, expected at least 1")
    cells = _chosen("--cells", request.cells or preset.cells or experiment.cells, experiment.cells)
    arms = _chosen("--arms", request.arms or experiment.arms, experiment.arms)
    device = _device(request.device)
    module = importlib.import_module(f"topk_plugin.reference.{experiment.trainer}")
    if ranks.launched() > 1 and not getattr(module, "DISTRIBUTED", False):
        raise ConfigError(
            f"torchrun: found {ranks.launched()} processes, expected one: {experiment.title} "
            "trains many small networks; leave torchrun out, --workers says how many at a time"
        )
    plan = {
        "experiment": name,
        "preset": request.preset,
        "settings": dataclasses.asdict(settings),
        "cells": list(cells),
        "arms": list(arms),
        "seeds": seeds,
        "device": device.type,
        "ranks": ranks.launched(),
    }
    out = request.out or Path("topk-runs") / f"{name}-{request.preset}"
    workers = request.workers or (_cores() if device.type == "cpu" else 1)
    members = [Member(cell, arm, seed) for seed in range(seeds) for cell in cells for arm in arms]
    asked = set(members)

    def opened() -> dict[str, Any]:
        """The run that the folder holds, with what is new in it, or a new one."""
        run: dict[str, Any] = _open(out, plan) or {
            **plan,
            "device_name": _device_name(device),
            "versions": versions(),
            "command": request.command,
            "changed": sorted(request.overrides),
            "seconds": 0.0,
            "jobs": {},
        }
        known = {member for stack in run["jobs"].values() for member in stack}
        new = [member for member in members if member not in known]
        if new:
            stacked = module.stacks(settings, new, device, workers)
            first = len(run["jobs"])
            run["jobs"] |= {f"{first + i:03d}": stack for i, stack in enumerate(stacked)}
            if known:
                run["command"] += f"; {request.command}"
                run["seeds"] = max(run["seeds"], seeds)
                run["cells"] = [one for one in experiment.cells if one in {*run["cells"], *cells}]
                run["arms"] = [one for one in experiment.arms if one in {*run["arms"], *arms}]
            write_atomically(out / RUN, _json(run))
        return run

    def jobs_left(run: Mapping[str, Any]) -> list[Job]:
        jobs = [
            Job(
                out / "jobs" / folder,
                experiment.trainer,
                settings,
                stack,
                device.type,
                request.tensorboard,
            )  # fmt: skip
            for folder, stack in run["jobs"].items()
            if not asked.isdisjoint(stack)
        ]
        return [job for job in jobs if not is_done(job)]

    with ranks.group(device):
        prepare = getattr(module, "prepare", None)
        first = ranks.rank() == 0
        telling = tell if first else lambda what, done, total: None
        plan["data"] = None
        if prepare is not None:
            plan["data"] = prepare(settings, cells, arms, device, telling)
        ranks.at_first(lambda: _make(out))
        with _locked(out, 0):
            run = ranks.at_first(opened)
            left = ranks.at_first(lambda: jobs_left(run))
            if not left:
                return out
            started = time.monotonic()
            try:
                if show is None or not first:
                    train_all(left, workers, lambda index, done, total: None)
                else:
                    with show(left) as shown:
                        train_all(left, workers, shown)
            finally:
                run["seconds"] += time.monotonic() - started
                if first:
                    write_atomically(out / RUN, _json(run))
    return out


def _make(out: Path) -> None:
    """Makes the folder of a run.

    Raises:
        ConfigError: it cannot be made or written, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out: found {out} ({error.strerror}), expected a folder that can be written; "
            "choose another one"
        ) from None
    if not (out / RUN).exists():
        own = "jobs", ".lock", RUN + PARTIAL
        others = sorted(path.name for path in out.iterdir() if path.name not in own)
        if others or any(out.glob("jobs/*")):
            raise ConfigError(
                f"--out: found {out} with {', '.join(others[:3]) or 'jobs'} in it and no run.json, "
                "expected an empty folder or one of an earlier run; choose another one"
            )


def _open(out: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run that a folder holds, or None.

    Raises:
        RunError: it is damaged.
        ResumeMismatch: a run of another plan.
    """
    file = out / RUN
    if not file.exists():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        run.setdefault("ranks", 1)  # runs of one process need not say so
        differ = [
            f"{key}: {run[key]!r} there, {value!r} now"
            for key, value in plan.items()
            if key not in ("settings", *GROWS) and run[key] != value
        ] + [
            f"{key}: {run['settings'].get(key)!r} there, {value!r} now"
            for key, value in plan["settings"].items()
            if key not in WHERE and run["settings"].get(key) != value
        ]
        run["seconds"] += 0.0
        if missing := [key for key in GROWS if key not in run]:
            raise KeyError(missing[0])
        run["jobs"] = {
            folder: [Member(*member) for member in stack] for folder, stack in run["jobs"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file}: damaged ({type(error).__name__}: {error}), expected what an earlier run "
            "wrote; restore it, or choose another folder"
        ) from None
    if differ:
        raise ResumeMismatch(
            f"{out} holds a run of other settings:\n  "
            + "\n  ".join(differ)
            + "\nGive the settings of that run, or choose another folder: --out."
        )
    return typing.cast(dict[str, Any], run)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _chosen(flag: str, wanted: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    for item in wanted:
        if item not in known:
            raise unknown_name(f"{flag} {item}", flag[2:-1], str(item), map(str, known))
    return [item for item in known if item in wanted]


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device: found {name!r}, expected cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device: found no CUDA device that torch {torch.__version__} can use, expected one; "
            "leave the flag out to train on the CPU"
        )
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.machine()}, {_cores()} cores"


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """What a result depends on."""
    return {
        "topk_plugin": topk_plugin.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
