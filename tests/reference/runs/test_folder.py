"""The folder of a run: another run's, nobody's, damaged, or one that grows."""

import json
import os
import shutil
import time

import pytest
from small_runs import TINY, contents, request

from topk_plugin.errors import ConfigError, ResumeMismatch, RunError
from topk_plugin.reference.mixture import training as mixtures
from topk_plugin.reference.runs import reproduce


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
