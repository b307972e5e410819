"""Runs whose processes are killed, fail or vanish."""

import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import DIGITS, TINY, ShownTo, assert_same_run, request, rows_of

from topk_plugin.cli import main
from topk_plugin.errors import RunError
from topk_plugin.reference import mixture
from topk_plugin.reference.mixture import training as mixtures
from topk_plugin.reference.runs import Request, reproduce, workers


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_whatever_ends_a_job_is_an_error_that_names_it(tmp_path, monkeypatch):
    def fails(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(mixture.Training, "advance", fails)
    with pytest.raises(RunError, match="jobs/000: MemoryError: no room"):
        reproduce(request(tmp_path / "run"))
