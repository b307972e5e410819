"""What is asked for: names, devices, and values of settings."""

import pytest
import torch
from small_runs import request

from topk_plugin.errors import ConfigError
from topk_plugin.reference import mixture
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.runs import reproduce, settings_of
from topk_plugin.reference.runs.request import whole


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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_list_of_all_arms_is_read_from_one_line(experiment):
    arms = EXPERIMENTS[experiment].arms
    assert whole(",".join(arms).split(","), arms) == list(arms) == whole(arms, arms)
    assert whole([*arms[:1], "none of them"], arms) == [*arms[:1], "none of them"]


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
