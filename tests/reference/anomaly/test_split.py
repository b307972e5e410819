"""Settings and images of Table 2, before any training."""

import math
from dataclasses import replace

import pytest
import torch
from anomaly_runs import CPU, SMALL, training

from topk_plugin.errors import ConfigError
from topk_plugin.reference.anomaly import ARMS, Settings, Training, prepare, split_images, stacks
from topk_plugin.reference.runs import Member


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "cifar"), ("dataset", "cifar10"), ("data", 3), ("download", 1),
        ("split", "both"), ("gamma", 0),
        ("nu", 1.1), ("nu", math.nan), ("gamma", "0.5"), ("companions", "auto"), ("meg_batch", 1),
        ("measure_every", 0), ("meg_epochs", 1.5), ("meg_dim", 12), ("bigan_dim", 3),
        ("meg_penalty", math.inf), ("bigan_average", 1.0), ("bigan_weight", -0.1),
        ("bigan_latent", True),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=f"{field}: found .* expected"):
        Settings(**{field: value})


def test_what_cannot_be_trained_is_said_before():
    with pytest.raises(ConfigError, match="bigan_batch: found 200, expected at most the 1"):
        prepare(replace(SMALL, bigan_batch=200), [1], ["bigan"], CPU, print)
    found = prepare(SMALL, [1, 4], ["meg", "bigan"], CPU, print)
    assert (found["name"], found["split"]) == (training("meg").images.name, "disjoint")
    assert (found["images"], found["digest"]) == (225, training("bigan").images.digest)
    with pytest.raises(ConfigError, match="found 0 images of the held-out digit 12"):
        Training(SMALL, [Member(12, "meg", 0)], CPU)
    with pytest.raises(ConfigError, match="found arm 'gan', expected one of bigan, top-k"):
        Training(SMALL, [Member(1, "gan", 0)], CPU)


def test_members_are_trained_alone():
    members = [Member(digit, arm, 0) for digit in (1, 4) for arm in ARMS]
    assert stacks(SMALL, members, CPU, 2) == [[member] for member in members]


@pytest.mark.parametrize("how", ["disjoint", "original"])
def test_splits(how):
    labels = torch.arange(1000) % 10
    train, test, anomalous = split_images(labels, 7, how)
    assert len(train.unique()) == len(train) == 720
    assert not (labels[train] == 7).any()
    assert torch.equal(labels[test] == 7, anomalous)
    assert sorted(test[anomalous].tolist()) == list(range(7, 1000, 10))
    normal = test[~anomalous]
    assert len(normal.unique()) == len(normal) == 180
    shared = torch.isin(normal, train).double().mean()
    assert shared == 0 if how == "disjoint" else 0.7 < shared < 0.9
