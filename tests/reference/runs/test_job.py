"""A job: measured, resumed to the last bit, damaged, locked, and on a full disk."""

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import CPU, TINY, Killed, ShownTo, assert_same_run, contents, request, rows_of

from topk_plugin.errors import RunError
from topk_plugin.reference import mixture, runs
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.mixture import training as mixtures
from topk_plugin.reference.runs import Job, Member, load_checkpoint, reproduce, settings_of
from topk_plugin.reference.runs import job as jobs


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


def flipped(content: bytes) -> bytes:
    """One bit of one weight."""
    saved = torch.load(io.BytesIO(content), weights_only=True)
    at = content.index(saved["training"]["generator"][2].numpy().tobytes())
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def other_file(content: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, file)
    return file.getvalue()


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
