"""``tests/gpu.sh`` where there is no GPU: it runs, on tiny sizes, and writes what it found."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torches import compiles

TESTS = Path(__file__).parent


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "benchmarks")
    return {name: importlib.import_module(name) for name in ("device", "images", "overhead")}


@pytest.mark.slow
@compiles
def test_it_writes_what_it_found(tmp_path):
    command = [TESTS / "gpu.sh", "--device", "cpu", "--tiny", "--out", tmp_path]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"].startswith("CPU")
    assert (found["torch"], found["tiny"]) == (torch.__version__, True)
    parts = {(part["title"], part["name"]): part for part in found["parts"]}
    assert {part["status"] for part in parts.values()} <= {"ran", "skipped"}
    for part in parts.values():
        assert bool(part["reason"]) == (part["status"] == "skipped")
    costs = [r for (title, _), p in parts.items() if "costs" in title for r in p["rows"]]
    kinds = {row["kind"] for row in costs}
    assert kinds == {"", "critic frozen", "step compiled", "networks compiled"}
    for row in costs:
        middle, low, high = row["/ nothing"]
        assert low <= middle <= high
        assert row["ms"] > 0
        assert row["rounds"] == 10
    speeds = [r for (title, _), p in parts.items() if "second" in title for r in p["rows"]]
    assert {"sngan", "sagan", "biggan"} == {row["model"] for row in speeds}
    page = (tmp_path / "gpu.md").read_text()
    assert torch.__version__ in page
    assert found["date"] in page
    for row in costs:
        assert f"| {row['arm']} | {row['ms']:.2f} |" in page


def test_what_there_is_no_time_for_is_skipped_and_said(modules, tmp_path, capsys):
    assert (
        modules["device"].main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 0
    )
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {part["status"] for part in parts} == {"skipped"}
    assert all("0 s were left" in part["reason"] for part in parts)
    assert capsys.readouterr().out.count("skipped") == len(parts)


def part_of(modules, program, most=60.0, needs=()):
    return modules["device"].Part("A title", "a part", ["-c", program], 0, most, needs)


def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(modules, tmp_path):
    late = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    program = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    outcome = modules["device"].run(part_of(modules, program, most=1), 100, tmp_path)
    assert (outcome.status, outcome.reason) == ("stopped", "after 1 s")
    assert time.monotonic() - start < 30
    time.sleep(2)
    assert not late.exists()


def test_a_part_that_fails_or_lacks_a_package_says_so(modules, tmp_path):
    run = modules["device"].run
    failed = run(part_of(modules, "raise ValueError('no | such')"), 100, tmp_path)
    assert failed.status == "failed"
    assert failed.reason == "exit status 1: ValueError: no | such"
    missing = run(part_of(modules, "", needs=["json", "no_such_package"]), 100, tmp_path)
    assert (missing.status, missing.reason) == ("skipped", "not installed: no_such_package")
    about = {"device": "d", "torch": "t", "python": "p", "date": "x", "tiny": False}
    page = modules["device"].page(about, [failed, missing])
    assert "no \\| such" in page
    assert "not installed: no_such_package" in page


def test_what_pytest_told_until_it_was_stopped(modules):
    text = (
        "tests/test_gpu.py::test_a[line A] PASSED [ 4%]\n"
        "tests/test_gpu.py::test_b SKIPPED (needs a CUDA device) [ 8%]\n"
        "tests/test_gpu.py::test_c FAILED [ 12%]\n"
        "tests/test_gpu.py::test_d "
    )
    assert modules["device"].told(text) == {
        "passed": 1,
        "skipped": 1,
        "failed": ["tests/test_gpu.py::test_c"],
    }


@pytest.mark.parametrize(("device", "tiny"), [("cuda", False), ("cuda", True), ("cpu", True)])
def test_every_part_can_be_started(modules, device, tiny):
    parts = modules["device"].parts(device, tiny)
    for part in parts:
        if part.title == modules["device"].TESTS:
            assert str(TESTS / "test_gpu.py") in part.command
        else:
            script, *arguments = part.command
            options = modules[Path(script).stem].chosen(arguments)
            assert options.device == device
    # what is measured first is done within the time
    assert sum(part.least for part in parts) < 12 * 60
