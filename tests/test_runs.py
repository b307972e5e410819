"""Runs of the reference experiments: killed at any moment, on full disks, damaged, misspelt."""

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from topk_plugin.cli import main
from topk_plugin.errors import ConfigError, ResumeMismatch, RunError
from topk_plugin.reference import mixture, runs
from topk_plugin.reference import report as reports
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.mixture import training as mixtures
from topk_plugin.reference.runs import (
    Job,
    Member,
    Request,
    load_checkpoint,
    reproduce,
    reproduction,
    settings_of,
    workers,
)
from topk_plugin.reference.runs import job as jobs

CPU = torch.device("cpu")
TINY = {
    "iterations": "12", "measure_every": "4", "batch": "8", "hidden": "8", "samples": "50",
    "decay_every": "2", "gamma": "0.8",
}  # fmt: skip
DIGITS = {
    "meg_epochs": "2", "meg_dim": "8", "meg_latent": "4", "meg_energy_steps": "2",
    "measure_every": "3",
}  # fmt: skip


class Killed(BaseException):
    """What ends a process at once, as far as a test can have it."""


def request(out: Path, overrides=None, **changes) -> Request:
    """Two jobs of table1, trained in this process."""
    wanted = Request("table1", seeds=2, cells=[25], overrides=TINY | (overrides or {}), out=out,
                     device="cpu", workers=1)  # fmt: skip
    return wanted._replace(**changes)


@pytest.fixture(autouse=True)
def small_stacks(monkeypatch):
    """So that a run has several jobs."""
    monkeypatch.setattr(mixtures, "STACK", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixtures, "STACK", 2)
        return reproduce(request(tmp_path_factory.mktemp("runs") / "undisturbed"))


def equal(a, b) -> bool:
    """To the last bit, in whatever a checkpoint may hold."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def assert_same_run(found: Path, expected: Path) -> None:
    """The same jobs, ended, with the same rows and checkpoints."""
    names = sorted(path.name for path in (expected / "jobs").iterdir())
    assert sorted(path.name for path in (found / "jobs").iterdir()) == names
    for mine, its in ((found / "jobs" / name, expected / "jobs" / name) for name in names):
        assert (mine / "done").exists()
        assert not list(mine.glob("*.partial"))
        assert (mine / "metrics.jsonl").read_bytes() == (its / "metrics.jsonl").read_bytes()
        assert equal(*(load_checkpoint(job / "checkpoint.pt", CPU) for job in (mine, its)))


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but for the locks and the seconds that were spent on the run."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {
        str(path.relative_to(folder)): re.sub(rb'"seconds": [\d.]+', b"", path.read_bytes())
        for path in files
    }


def rows_of(job: Path) -> list[dict]:
    return [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]


# --- a run --------------------------------------------------------------------------------------


def test_a_run_trains_measures_and_keeps_what_its_trainer_says(undisturbed):
    run = json.loads((undisturbed / "run.json").read_text())
    assert run["experiment"] == "table1"
    assert (run["seeds"], run["cells"], run["arms"]) == (2, [25], ["gan", "top-k"])
    assert run["versions"]["torch"] == torch.__version__
    assert run["seconds"] > 0
    assert list(run["jobs"]) == ["000", "001"]
    settings = settings_of(EXPERIMENTS["table1"], "smoke", TINY)
    assert run["settings"] == dataclasses.asdict(settings)
    assert (settings.iterations, settings.gamma, settings.nu) == (12, 0.8, 0.75)
    for name, stack in run["jobs"].items():
        training = mixture.Training(settings, [Member(*member) for member in stack], CPU)
        expected = []
        for until in (4, 8, 12):
            training.advance(until)
            expected += [{**row, "iterations": 12} for row in training.measure()]
        job = undisturbed / "jobs" / name
        assert rows_of(job) == json.loads(json.dumps(expected))
        saved = load_checkpoint(job / "checkpoint.pt", CPU)
        assert equal(saved["training"], training.state_dict())
        assert saved["journal"] == (job / "metrics.jsonl").stat().st_size


def test_a_run_that_ended_is_left_as_it_is(undisturbed, monkeypatch):
    before = contents(undisturbed)
    monkeypatch.setattr(reproduction, "train_all", None)
    assert reproduce(request(undisturbed)) == undisturbed
    assert contents(undisturbed) == before


def test_threads_are_those_of_before(tmp_path):
    torch.set_num_threads(2)
    try:
        seen = []
        reproduce(
            request(tmp_path / "run", {"iterations": "1"}),
            lambda jobs: ShownTo(lambda *_: seen.append(torch.get_num_threads())),
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


class Counting:
    """A trainer that only counts."""

    def __init__(self, settings, members, device) -> None:
        self.iterations, self.iteration = 1000, 0

    def advance(self, until: int) -> None:
        assert self.iteration < until <= self.iteration + 1000 // jobs.SLICES
        self.iteration = until

    def measure(self) -> list[dict]:
        return [{"iteration": self.iteration}]

    def state_dict(self) -> dict:
        return {"iteration": self.iteration}

    def load_state_dict(self, state) -> None:
        self.iteration = state["iteration"]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(333, [333, 666, 999, 1000]), (500, [500, 1000]), (4000, [1000])],
)
def test_measurements_come_at_their_interval_and_at_the_end(tmp_path, monkeypatch, every, expected):
    monkeypatch.setattr(mixture, "Training", Counting)
    settings, told = mixture.Settings(measure_every=every), []
    runs.train(Job(tmp_path, "mixture", settings, [], "cpu"), lambda *at: told.append(at))
    assert [row["iteration"] for row in rows_of(tmp_path)] == expected
    assert told[-1] == told[-2] == (1000, 1000)
    assert len({done for done, _ in told}) == len(told) - 1


class ShownTo:
    """The context manager that ``reproduce`` takes: calls go to ``function``."""

    def __init__(self, function) -> None:
        self.function = function

    def __enter__(self):
        return self.function

    def __exit__(self, *error) -> None:
        pass


# --- killed -------------------------------------------------------------------------------------


def test_killed_before_any_write_it_ends_bit_identical(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "STACK", 4)
    settings = {"iterations": "4", "measure_every": "2"}
    expected = reproduce(request(tmp_path / "undisturbed", settings))
    writes, fsync = 0, os.fsync
    while True:
        out = tmp_path / str(writes)
        left = writes

        def counted(descriptor):
            nonlocal left
            left -= 1
            if left == -1:
                raise Killed
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted)
            try:
                reproduce(request(out, settings))
                break
            except Killed:
                pass
        reproduce(request(out, settings))
        assert_same_run(out, expected)
        writes += 1
    # run.json twice, the first checkpoint and the mark of the end, each with its folder; twice rows
    # and a checkpoint
    assert writes == 2 * 2 + 2 + 2 + 2 * (1 + 2)


def test_rows_after_the_last_checkpoint_are_cut_off(tmp_path, undisturbed, monkeypatch):
    out, save = tmp_path / "run", runs.save_checkpoint

    def killed(path, state):
        if state["training"]["iteration"] == 8:
            raise Killed
        return save(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "save_checkpoint", killed)
        with pytest.raises(Killed):
            reproduce(request(out))
    job = out / "jobs" / "000"
    saved = load_checkpoint(job / "checkpoint.pt", CPU)
    assert saved["training"]["iteration"] == 4
    assert (job / "metrics.jsonl").stat().st_size > saved["journal"] > 0
    with (job / "metrics.jsonl").open("a") as journal:
        journal.write('{"cell": 25, "half a')
    reproduce(request(out))
    assert_same_run(out, undisturbed)


def test_a_checkpoint_is_written_by_the_clock_too(tmp_path, undisturbed, monkeypatch):
    out, seen = tmp_path / "run", []

    def killed(index, done, total):
        seen.append(done)
        if done == 7:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "SAVE_SECONDS", 0)
        with pytest.raises(Killed):
            reproduce(request(out), lambda jobs: ShownTo(killed))
    assert seen == list(range(1, 8))
    resumed = []
    reproduce(request(out), lambda jobs: ShownTo(lambda *told: resumed.append(told)))
    assert resumed[0] == (0, 7, 12)  # 6 were saved
    assert_same_run(out, undisturbed)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def started(arguments: list[str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "topk_plugin", *arguments]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def wait_until(fulfilled, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def kill(process: subprocess.Popen, longest: float) -> None:
    """After at most so many seconds, with no chance to clean up."""
    seed = random.randrange(10**6)
    print("seed of the delay:", seed)
    time.sleep(random.Random(seed).uniform(0, longest))
    assert process.poll() is None
    process.kill()
    process.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_table1_killed_failed_and_resumed_ends_bit_identical(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(mixtures, "STACK", 4)  # as in the process that is killed
    settings = TINY | {"iterations": "90", "measure_every": "6"}
    out, log = tmp_path / "killed", tmp_path / "log"
    arguments = ["reproduce", "table1", "--device", "cpu", "--workers", "2", "--seeds", "5",
                 "--cells", "25", "--out", str(out)]  # fmt: skip
    arguments += [word for item in settings.items() for word in ("--set", "=".join(item))]
    process = started(arguments, log)
    wait_until(lambda: list(out.glob("jobs/*/done")), 120, log)
    workers = children(process.pid)
    kill(process, longest=0.1)
    assert len(workers) >= 2
    wait_until(lambda: not any(map(alive, workers)), 15, log)
    jobs = [out / "jobs" / name for name in ("000", "001", "002")]
    left = [job for job in jobs if not (job / "done").exists()]
    assert left

    # a job that cannot go on ends the others
    broken = left[-1]
    broken.mkdir(exist_ok=True)
    checkpoint = broken / "checkpoint.pt"
    content = checkpoint.read_bytes() if checkpoint.exists() else None
    torch.save({"training": {}, "journal": 0}, checkpoint)
    other = next(job for job in jobs if job != broken)
    (other / "done").unlink(missing_ok=True)
    assert main(arguments) == 3
    assert f"RunError: {broken}: KeyError: 'iteration'" in capfd.readouterr().err
    assert not multiprocessing.active_children()
    checkpoint.unlink() if content is None else checkpoint.write_bytes(content)

    monkeypatch.setattr(mixtures, "STACK", 1)  # jobs are those of the first command
    arguments[arguments.index("2")] = "1"
    assert main(arguments) == 0
    assert "high-quality samples" in capfd.readouterr().out
    monkeypatch.setattr(mixtures, "STACK", 4)
    expected = request(tmp_path / "undisturbed", settings, seeds=5)
    assert_same_run(out, reproduce(expected))
    assert sorted(out.glob("jobs/*")) == jobs


def test_table2_killed_and_resumed_ends_bit_identical(tmp_path):
    out, log = tmp_path / "killed", tmp_path / "log"
    arguments = ["reproduce", "table2", "--device", "cpu", "--workers", "1", "--cells", "4",
                 "--arms", "top-k+meg", "--out", str(out)]  # fmt: skip
    arguments += [word for item in DIGITS.items() for word in ("--set", "=".join(item))]
    process = started(arguments, log)
    job = out / "jobs" / "000"
    journal = job / "metrics.jsonl"
    wait_until(lambda: journal.exists() and journal.stat().st_size, 120, log)
    kill(process, longest=0.2)
    assert not (job / "done").exists()
    wanted = Request("table2", cells=[4], arms=["top-k+meg"], overrides=DIGITS, out=out,
                     device="cpu", workers=1)  # fmt: skip
    reproduce(wanted)
    expected = tmp_path / "undisturbed"
    reproduce(wanted._replace(out=expected))
    assert_same_run(out, expected)
    last = rows_of(job)[-1]
    assert (last["kind"], last["iteration"]) == ("topk", last["iterations"])


def test_workers_that_vanish_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_work", print)  # ends without a message
    with pytest.raises(RunError, match="ended without a word .* same command"):
        reproduce(request(tmp_path / "run", workers=2))
    assert not multiprocessing.active_children()


# --- another run's, or nobody's, folder ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"overrides": TINY | {"hidden": "9", "prior": "uniform"}},
         ["hidden: 8 there, 9 now", "prior: 'normal' there, 'uniform' now"]),
        ({"preset": "paper"}, ["preset: 'smoke' there, 'paper' now"]),
        ({"result": "figure2"},
         ["experiment: 'table1' there, 'probe' now",
          "top: None there, 0.75 now", "bottom: None there, 0.25 now",
          "probes: None there, 10000 now", "step: None there, 'sgd' now",
          "step_rate: None there, 0.0001 now"]),
    ],
)  # fmt: skip
def test_a_folder_of_another_run_is_refused(undisturbed, changes, expected):
    before = contents(undisturbed)
    with pytest.raises(ResumeMismatch) as raised:
        reproduce(request(undisturbed)._replace(**changes))
    found = str(raised.value).splitlines()
    assert str(undisturbed) in found[0]
    assert [line.strip() for line in found[1:-1]] == expected
    assert contents(undisturbed) == before


def test_a_run_grows_by_arms_cells_and_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "STACK", 1)  # so that each is trained by itself
    out, whole = tmp_path / "grown", tmp_path / "whole"
    first = request(out, arms=["top-k"], seeds=1, command="first")
    reproduce(first)
    before = contents(out / "jobs")
    reproduce(request(out, cells=[64, 25], command="second"))
    assert contents(out / "jobs").items() >= before.items()
    run = json.loads((out / "run.json").read_text())
    assert (run["seeds"], run["cells"], run["arms"]) == (2, [25, 64], ["gan", "top-k"])
    assert run["command"] == "first; second"
    assert len(run["jobs"]) == len({tuple(*stack) for stack in run["jobs"].values()}) == 8
    reproduce(request(whole, cells=[25, 64]))
    at_once = json.loads((whole / "run.json").read_text())["jobs"]
    for job, [member] in run["jobs"].items():
        [its] = [name for name, [other] in at_once.items() if other == member]
        rows = [
            folder / "jobs" / name / "metrics.jsonl" for folder, name in ((out, job), (whole, its))
        ]
        assert rows[0].read_bytes() == rows[1].read_bytes()
    grown = contents(out)
    (out / "jobs" / "007" / "done").unlink()
    reproduce(first)  # trains what it asks for, and that is there
    assert contents(out).keys() == grown.keys() - {"jobs/007/done"}
    reproduce(request(out, cells=[25, 64]))
    assert contents(out) == grown


def test_a_run_on_another_device_is_refused(tmp_path, undisturbed):
    out = shutil.copytree(undisturbed, tmp_path / "run")
    file = out / "run.json"
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(ResumeMismatch, match=r"device: 'cuda' there, 'cpu' now"):
        reproduce(request(out))


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"--out: found .* with thesis.tex in it and no run.json"):
        reproduce(request(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "jobs" / "000").mkdir(parents=True)
    with pytest.raises(ConfigError, match="with jobs in it and no run.json"):
        reproduce(request(tmp_path))


@pytest.mark.parametrize("where", ["file", "file/below", "/proc"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    out = tmp_path / where
    if not out.exists() and where == "/proc":
        pytest.skip("needs /proc, where nobody can write")
    with pytest.raises(ConfigError, match=rf"--out: found {out} \(.*expected a folder that can"):
        reproduce(request(out))


def test_a_folder_without_permission_is_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"--out: found .*Permission denied"):
        reproduce(request(tmp_path / "run"))


# --- damaged ------------------------------------------------------------------------------------


def flipped(content: bytes) -> bytes:
    """One bit of one weight."""
    saved = torch.load(io.BytesIO(content), weights_only=True)
    at = content.index(saved["training"]["generator"][2].numpy().tobytes())
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def other_file(content: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, file)
    return file.getvalue()


@pytest.fixture
def unfinished(tmp_path, undisturbed) -> Path:
    """A copy of the run, whose first job is not marked as ended."""
    out = shutil.copytree(undisturbed, tmp_path / "run")
    (out / "jobs" / "000" / "done").unlink()
    return out


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"no checkpoint", flipped, other_file],
    ids=["half", "empty", "text", "one bit", "another file"],
)
def test_a_damaged_checkpoint_is_named_and_left(unfinished, damage):
    file = unfinished / "jobs" / "000" / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    before = contents(unfinished)
    with pytest.raises(RunError, match=rf"{file}: cannot be read \(.*delete its folder"):
        reproduce(request(unfinished))
    assert contents(unfinished) == before


@pytest.mark.parametrize("shorter", [True, False])
def test_a_journal_that_lost_rows_is_named_and_left(unfinished, shorter):
    file = unfinished / "jobs" / "000" / "metrics.jsonl"
    length = file.stat().st_size
    os.truncate(file, length - 7) if shorter else file.unlink()
    before = contents(unfinished)
    found = length - 7 if shorter else 0
    with pytest.raises(RunError, match=rf"{file}: found {found} bytes, expected the {length} that"):
        reproduce(request(unfinished))
    assert contents(unfinished) == before


def without(key):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


@pytest.mark.parametrize(
    "damage",
    [lambda t: t[:-9], lambda t: "", lambda t: "[]", lambda t: "\x80", without("settings"),
     without("seeds"), without("jobs"), without("seconds"),
     lambda t: t.replace('"jobs": {', '"jobs": {"x": [[25]],')],
)  # fmt: skip
def test_a_damaged_description_of_the_run_is_named_and_left(unfinished, damage):
    file = unfinished / "run.json"
    file.write_text(damage(file.read_text()), encoding="latin-1")
    before = contents(unfinished)
    with pytest.raises(RunError, match=rf"{file}: damaged \(.*restore it, or choose another"):
        reproduce(request(unfinished))
    assert contents(unfinished) == before


def test_rows_whose_checkpoint_is_gone_are_not_lost(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)  # as results are that were committed without checkpoints
    for job in (folder / "jobs").iterdir():
        (job / "checkpoint.pt").unlink()
    reproduce(request(folder))
    (folder / "jobs" / "001" / "done").unlink()
    before = contents(folder)
    with pytest.raises(RunError, match=r"001/metrics.jsonl: found rows and no checkpoint"):
        reproduce(request(folder))
    assert contents(folder) == before


def test_an_ended_job_that_lost_rows_is_named(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    journal = folder / "jobs" / "000" / "metrics.jsonl"
    os.truncate(journal, 10)
    with pytest.raises(RunError, match=r"000/metrics.jsonl: found 10 bytes, expected the \d+"):
        reproduce(request(folder))


def test_a_run_that_another_process_is_at_is_refused_at_once(undisturbed, tmp_path):
    from filelock import FileLock

    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "jobs" / "000" / "done").unlink()
    before = contents(folder)
    with FileLock(folder / ".lock", is_singleton=False):
        started = time.monotonic()
        with pytest.raises(RunError, match="another process trains here"):
            reproduce(request(folder))
        assert time.monotonic() - started < 5
    assert contents(folder) == before
    reproduce(request(folder))


def test_whatever_ends_a_job_is_an_error_that_names_it(tmp_path, monkeypatch):
    def fails(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(mixture.Training, "advance", fails)
    with pytest.raises(RunError, match="jobs/000: MemoryError: no room"):
        reproduce(request(tmp_path / "run"))


def test_the_command_that_is_stopped_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(mixture.Training, "advance", stopped)
    command = ["reproduce", "table1", "--device", "cpu", "--workers", "1", "--out"]
    assert main([*command, str(tmp_path / "run")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table1", "--dataset", "mnist"], "--dataset: found 'mnist', expected nothing: Table 1"),
        (["figure2", "--download"], "--download: found 'true', expected nothing: Figures 2"),
    ],
)
def test_what_the_command_cannot_do_is_said(arguments, expected, capsys):
    assert main(["reproduce", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_a_deleted_job_is_trained_anew(unfinished, undisturbed):
    shutil.rmtree(unfinished / "jobs" / "000")
    reproduce(request(unfinished))
    assert_same_run(unfinished, undisturbed)


# --- disks and locks ----------------------------------------------------------------------------


def test_too_little_disk_is_said_before_training(tmp_path, undisturbed, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
        patch.setattr(mixture.Training, "advance", None)
        for _ in range(2):  # the second time, too
            with pytest.raises(RunError, match="found 0 MiB free on its disk, expected 1 MiB"):
                reproduce(request(tmp_path / "run"))
    reproduce(request(tmp_path / "run"))
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 7])
def test_a_full_disk_leaves_a_run_that_goes_on(tmp_path, undisturbed, monkeypatch, after):
    out, left, fsync = tmp_path / "run", after, os.fsync

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"not written \(No space left on device\)"):
            reproduce(request(out))
    assert not list(out.rglob("*.partial"))
    for checkpoint in out.rglob("checkpoint.pt"):
        assert load_checkpoint(checkpoint, CPU)["training"]["iteration"] in (0, 4)
    reproduce(request(out))
    assert_same_run(out, undisturbed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk(unfinished, undisturbed):
    file = unfinished / "jobs" / "000" / "checkpoint.pt"
    before = file.read_bytes()
    Path(f"{file}.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match=rf"{file}: not written \(No space left on device\)"):
        runs.save_checkpoint(file, {"training": {}, "journal": 0})
    assert file.read_bytes() == before
    reproduce(request(unfinished))
    assert_same_run(unfinished, undisturbed)


def test_a_journal_that_may_not_grow(unfinished, undisturbed):
    journal = unfinished / "jobs" / "000" / "metrics.jsonl"
    shutil.rmtree(journal.parent)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(done, total):
        if done == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 50, limits[1]))

    settings = settings_of(EXPERIMENTS["table1"], "smoke", TINY)
    members = [Member(25, arm, 0) for arm in ("gan", "top-k")]
    try:
        with pytest.raises(RunError, match=r"metrics.jsonl: not written \(File too large\)"):
            runs.train(Job(journal.parent, "mixture", settings, members, "cpu"), limited)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not journal.read_bytes().endswith(b"\n")
    reproduce(request(unfinished))
    assert_same_run(unfinished, undisturbed)


def test_a_job_that_another_process_trains(unfinished, undisturbed, monkeypatch):
    monkeypatch.setattr(jobs, "LOCK_SECONDS", 0.1)
    program = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
sys.stdin.read()
"""
    lock = unfinished / "jobs" / "000" / ".lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, lock], **pipes) as other:
        other.stdout.readline()
        before = contents(unfinished)
        with pytest.raises(RunError, match=rf"{lock.parent}: another process trains here"):
            reproduce(request(unfinished))
        assert contents(unfinished) == before
        other.send_signal(signal.SIGKILL)
    reproduce(request(unfinished))
    assert_same_run(unfinished, undisturbed)


# --- what was asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"result": "tabel1"}, r"tabel1: unknown result; did you mean 'table1'\? Known: table1, t"),
        ({"preset": "papers"}, r"--preset papers: unknown preset; did you mean 'paper'\?"),
        ({"overrides": {"iteration": "3"}}, r"--set iteration: .* did you mean 'iterations'\?"),
        ({"overrides": {"batch": "0"}}, "batch: found 0, expected a whole number, at least 1"),
        ({"cells": [25, 26]}, "--cells 26: unknown cell; Known: 25, 64, 100"),
        ({"arms": ["topk"]}, r"--arms topk: unknown arm; did you mean 'top-k'\? Known: gan, top-k"),
        ({"seeds": 0}, "--seeds: found 0, expected at least 1"),
        ({"workers": 0}, "--workers: found 0, expected at least 1"),
        ({"workers": -1}, "--workers: found -1, expected at least 1"),
        ({"device": "tpu"}, "--device: found 'tpu', expected cpu or cuda"),
    ],
)
def test_what_is_unknown_is_said_with_the_nearest_name(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        reproduce(request(tmp_path / "run")._replace(**changes))
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device: found no CUDA device .* leave the flag out"):
        reproduce(request(tmp_path / "run", device="cuda"))


@pytest.mark.parametrize(
    ("experiment", "name", "text", "value"),
    [
        ("table1", "learning_rate", "1e-4", 1e-4), ("table1", "learning_rate", "2.5e-3", 0.0025),
        ("table1", "std", "1", 1.0), ("table1", "nu", ".5", 0.5), ("table1", "batch", "64", 64),
        ("table1", "iterations", "100_000", 100_000), ("table1", "prior", "uniform", "uniform"),
        ("table2", "download", "true", True), ("table2", "download", "no", False),
        ("table2", "data", "2024", "2024"), ("table2", "data", "a/b c", "a/b c"),
        ("probe", "step_rate", "1", 1.0),
    ],
)  # fmt: skip
def test_values_are_read_by_the_setting_s_type(experiment, name, text, value):
    found = getattr(settings_of(EXPERIMENTS[experiment], "paper", {name: text}), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("experiment", "name", "text", "kind"),
    [
        ("table1", "batch", "64.0", "int"), ("table1", "batch", "true", "int"),
        ("table1", "batch", "many", "int"), ("table1", "batch", "", "int"),
        ("table1", "batch", "1e2", "int"), ("table1", "batch", "[1", "int"),
        ("table1", "gamma", "true", "float"), ("table1", "gamma", "half", "float"),
        ("table1", "gamma", "[0.5]", "float"), ("table2", "download", "1", "bool"),
        ("table2", "download", "ja", "bool"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_are_named(experiment, name, text, kind):
    with pytest.raises(ConfigError) as raised:
        settings_of(EXPERIMENTS[experiment], "smoke", {name: text})
    assert str(raised.value) == f"--set {name}: found {text!r}, expected {kind}"


def test_a_preset_s_settings_come_before_the_defaults_and_after_the_command_s():
    experiment = EXPERIMENTS["table1"]
    assert settings_of(experiment, "paper", {}) == mixture.Settings()
    smoke = settings_of(experiment, "smoke", {"measure_every": "7"})
    preset = experiment.presets["smoke"].settings
    assert smoke == mixture.Settings(**{**preset, "measure_every": 7})


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["nonsense"],
            "nonsense: unknown result; Known: table1, table2, table3, table4, table5, neurips",
        ),
        (["figure5"], "did you mean 'figure4'|did you mean 'figure2'|did you mean 'figure3'"),
        (["table1", "--set", "x"], "--set: found 'x', expected NAME=VALUE"),
        (["table1", "--set", "hiden=8"], "--set hiden: unknown setting; did you mean 'hidden'"),
        (["table1", "--cells", "3"], "--cells 3: unknown cell"),
        (["table1", "--arms", "gan,topk"], "--arms topk: .* did you mean 'top-k'"),
        (["table1", "--preset", "shot"], "--preset shot: .* did you mean 'short'"),
        (["table1", "--worker", "2"], "--worker: unknown option; did you mean '--workers'"),
    ],
)
def test_a_mistake_in_the_command_is_said(arguments, expected, capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["reproduce", *arguments, "--out", str(out)]) == 2
    assert re.search(f"topk: ConfigError: .*{expected}", capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("text", ["a", "25,", "1.5"])
def test_cells_are_whole_numbers(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", "table1", "--cells", text])
    expected = f"argument --cells: found '{text}', expected whole numbers such as 25,64"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_says_what_to_train_and_shows_it(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["topk", "reproduce", "figure3", "--set", "a b"])
    reported = []
    monkeypatch.setattr(reports, "report", lambda folders: reported.append(folders) or 0)
    out = tmp_path / "run"
    arguments = ["reproduce", "figure3", "--preset", "short", "--seeds", "3", "--device", "cpu",
                 "--workers", "2", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr(reproduction, "train_all", told_of_progress)
    settings = TINY | {"step": "adam", "probes": "20"}
    for item in settings.items():
        arguments += ["--set", "=".join(item)]
    assert main(arguments) == 0
    assert reported == [[out]]
    run = json.loads((out / "run.json").read_text())
    assert run["command"] == "topk reproduce figure3 --set 'a b'"
    assert (run["experiment"], run["preset"], run["seeds"]) == ("probe", "short", 3)
    assert (run["cells"], run["arms"], run["device"]) == ([25], ["gan"], "cpu")
    assert run["settings"]["step"] == "adam"
    assert run["jobs"] == {"000": [[25, "gan", 0], [25, "gan", 1]], "001": [[25, "gan", 2]]}
    shown = capsys.readouterr().err
    if terminal:
        assert "all 2 jobs" in shown
        assert "1/2" in shown
        assert "000: 25, gan, seed 0, 1" in shown
    else:
        assert re.findall(r"s  (.*)\n", shown) == [
            "000: 25, gan, seed 0, 1: 6 of 12 iterations",
            "001: 25, gan, seed 2: 2 of 12 iterations",
            "000: 25, gan, seed 0, 1: 12 of 12 iterations",
        ]


def told_of_progress(jobs: list[Job], workers: int, show) -> None:
    """In the place of the training."""
    assert workers == 2
    for told in ((0, 1, 12), (0, 6, 12), (0, 6, 12), (1, 2, 12), (0, 12, 12), (0, 12, 12)):
        show(*told)


def test_a_report_of_a_folder_that_holds_no_run(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["report", str(folder)]) == 2
        assert f"ConfigError: {folder}" in capsys.readouterr().err
