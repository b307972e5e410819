"""A run and what it leaves."""

import dataclasses
import json

import torch
from small_runs import CPU, TINY, contents, equal, request, rows_of

from topk_plugin.reference import mixture
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.runs import Member, load_checkpoint, reproduce, reproduction, settings_of


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
