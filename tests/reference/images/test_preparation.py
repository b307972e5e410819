"""What is said before a training of images, and a run as a whole."""

import dataclasses

import pytest
import torch
from image_runs import SIZE, changed
from image_trainings import rows_of

from topk_plugin.cli import main
from topk_plugin.errors import ConfigError
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.report import read_run


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": 9, "accumulation": 2}, "batch: found 9, expected a multiple of 2"),
        ({"score_every": 3}, "score_every: found 3, expected a multiple of measure_every, 2"),
        ({"dataset": "cifar"}, "dataset: found 'cifar', expected one of .*cifar10"),
        ({"width": 0}, "width: found 0"),
        ({"channels": 2}, "channels: found 2, expected 1, 3 or null"),
        ({"features": "resnet"}, "features: found 'resnet', expected one of inception, classifier"),
        ({"bf16": 1}, "bf16: found 1, expected true or false"),
    ],
)
def test_settings_that_cannot_be(changes, text):
    with pytest.raises(ConfigError, match=text):
        changed(**changes)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--set", "batch=2000"], "found 2000, expected at most the 1797 images"),
        (["--set", "channels=3"], "whose images are grey, expected 1"),
        (["--set", "features=inception", "--set", "inception=missing.pth"],
         "missing.pth cannot be read (No such file or directory)"),
        (["--dataset", "cifar10", "--data", "nowhere"], "nowhere"),
        (["--dataset", "folder", "--data", "nowhere"], "found no such folder"),
        (["--set", "graphs=true"], "graphs: found true on cpu, expected false"),
        (["--arms", "top-k+sgan"], "did you mean 'top-k+sngan'?"),
        (["--device", "cuda"], "found no CUDA device"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_before_training(
    arguments, text, tmp_path, capsys, monkeypatch
):
    if "cuda" in arguments:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    else:
        arguments = [*arguments, "--device", "cpu"]
    out = tmp_path / "out"
    assert main(["reproduce", "table3", "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert text in " ".join(error.split())
    assert not out.exists()


def test_a_run_leaves_rows_sheets_and_a_report(tmp_path, monkeypatch, capsys):
    experiment = EXPERIMENTS["table3"]
    monkeypatch.setitem(EXPERIMENTS, "table3", dataclasses.replace(experiment, cells=(SIZE,)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"iterations": 4, "batch": 600, "samples": 40, "measure_every": 2, "score_every": 2}
    arguments = [f"--set={name}={value}" for name, value in settings.items()]
    out = tmp_path / "out"
    arguments += ["--workers=1", "--device=cpu", f"--out={out}", "--tensorboard"]
    assert main(["reproduce", "table3", "--arms", "dcgan,top-k+dcgan", *arguments]) == 0
    printed, told = capsys.readouterr()
    assert "0 MiB decoded, 0 of 1,797 images\n" in told
    assert "1,797 of 1,797 images\n" in told
    assert "Table 3: images" in printed
    assert "The paper's numbers are left out" in printed
    assert sorted(path.name for path in out.glob("*.png")) == ["samples.png", "table3.png"]
    assert sorted(path.name for path in (out / "jobs/000").glob("*.png")) == [
        "samples-0000002.png", "samples-0000004.png",
    ]  # fmt: skip
    from tensorboard.backend.event_processing import event_accumulator

    board = event_accumulator.EventAccumulator(str(out / "jobs/001/tensorboard")).Reload()
    [logged] = board.Scalars("score/fid/16 top-k+dcgan 0")[-1:]
    [score] = [r["fid"] for r in rows_of(out / "jobs/001") if r["kind"] == "score"][-1:]
    assert (logged.step, logged.value) == (4, pytest.approx(score))
    run = read_run(out)
    assert run.data is not None
    assert run.data["features"].startswith("classifier of digits")
    report = (out / "report.md").read_text()
    assert "| pixels | DCGAN | top-k DCGAN |" in report
