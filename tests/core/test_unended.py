"""Loops in which no epoch ever ends: told at the end, and in a long training before it."""

import gc
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.core.unended import FEW, MANY

SETTINGS = {"gamma": 0.9, "nu": 0.5}
SAID = f"topk: {FEW} generator steps and no epoch that ended, so k stayed at the batch"


def trained(steps: int = FEW, **settings) -> TopK:
    topk = TopK(**(SETTINGS | settings))
    for _ in range(steps):
        topk.step()
    return topk


def gone(make: Callable[[], TopK], capsys: pytest.CaptureFixture) -> str:
    """What is said when it is gone; nothing else may hold it."""
    topk = make()
    assert capsys.readouterr().err == ""
    reminder = topk.reminder
    assert reminder.atexit or not reminder.alive  # it is told at the end of the process, too
    del topk
    gc.collect()
    assert not reminder.alive
    return capsys.readouterr().err


def test_it_is_said_how_epochs_end(capsys):
    err = gone(trained, capsys)
    assert err.startswith(SAID)
    for way in ("topk.end_epoch()", "loader=loader", "every=N"):
        assert way in err


def test_of_what_was_attached(capsys):
    def train():
        torch.manual_seed(0)
        G, D, topk = nn.Linear(2, 2), nn.Linear(2, 1), TopK(**SETTINGS)
        opt_g, opt_d = (torch.optim.SGD(net.parameters(), 0.01) for net in (G, D))
        with attach(D, topk):
            for _ in range(FEW):
                opt_d.zero_grad()
                (D(G(torch.randn(4, 2)).detach()).mean() - D(torch.randn(4, 2)).mean()).backward()
                opt_d.step()
                opt_g.zero_grad()
                (-D(G(torch.randn(4, 2))).mean()).backward()
                opt_g.step()
        return topk

    assert gone(train, capsys).startswith(SAID)


def ended():
    topk = trained()
    topk.end_epoch()
    return topk


def resumed():
    topk = TopK(**SETTINGS)
    topk.load_state_dict(ended().state_dict())
    for _ in range(FEW):
        topk.step()
    return topk


@pytest.mark.parametrize(
    "make",
    [
        ended,
        resumed,
        lambda: trained(FEW - 1),
        lambda: trained(gamma=1.0),
        lambda: trained(nu=1.0),
        lambda: trained(enabled=False),
        lambda: trained(every=1000),
        lambda: trained(start_epoch=3),
    ],
)
def test_nothing_is_said_where_one_ended_or_k_could_not_fall(make, capsys):
    assert gone(make, capsys) == ""


def test_nothing_is_said_after_an_error_or_by_other_ranks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert gone(trained, capsys) == ""
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(sys, "last_value", ValueError(), raising=False)
    assert gone(trained, capsys) == ""


def test_a_long_training_is_told_before_its_end():
    topk = trained(MANY - 1)
    with pytest.warns(UserWarning, match=r"10,000 generator steps, and no epoch has ended yet"):
        topk.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topk.step()
    topk.reminder.detach()
