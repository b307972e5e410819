"""Critics that change their inputs or outputs in place, and loops that change the scores."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
from losses import (
    BATCH,
    LATENT,
    LOSSES,
    TOLD,
    WIDTH,
    assert_same,
    error,
    gradients,
    literal,
    make_topk,
    noise,
)
from torch import nn

from topk_plugin import attach

pytestmark = pytest.mark.usefixtures("seeded")


class InPlace(nn.Module):
    """A critic that changes its input or its output in place."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.net = nn.Sequential(
            nn.LeakyReLU(0.3, inplace=True) if "input" in where else nn.Identity(),
            nn.Linear(WIDTH, 5),
            nn.BatchNorm1d(5),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(5, 1),
        ).double()

    def forward(self, x):
        if "detour" in self.where:
            x = x * 1.5
        out = self.net(x)
        return out.mul_(2) if "output" in self.where else out


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("way", ["line", "score", "shielded", "observe"])
@pytest.mark.parametrize("after", ["nothing", "squeeze_", "mul_", "view, add_"])
@pytest.mark.parametrize("where", ["input", "output", "input, output", "input after a detour"])
def test_in_place_operations(where, after, way, told):
    """Tanh needs its output in the backward, so the generator ends in a linear layer here."""
    loss = LOSSES["non-saturating"]
    G = nn.Sequential(nn.Linear(LATENT, 10), nn.ReLU(), nn.Linear(10, WIDTH)).double()
    D, z = InPlace(where), noise()

    def change(out):
        if after == "squeeze_":
            return out.squeeze_(1)
        if after == "mul_":
            return out.mul_(3)
        if after == "view, add_":
            out.view(-1).add_(1)
        return out

    k = BATCH if way == "observe" else 3
    G1, D1 = copy.deepcopy((G, D))
    literal(loss, change(D1(G1(z))), k).backward()
    G2, D2 = copy.deepcopy((G, D))
    loss.of(change(D2(G2(z)))).backward()
    gate = way if way in ("score", "shielded") else "auto"
    topk = make_topk(k, gate=gate, direction=loss.direction(told))
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        loss.of(change(topk(out) if way == "line" else out)).backward()
    assert error(gradients(G), gradients(G1)) <= 1e-12
    if way in ("shielded", "observe"):
        assert_same(gradients(D), gradients(D2))


def test_a_fake_that_the_critic_changed_and_the_loss_reads_again():
    """Without the plugin the changed fake carries the change's gradient; so it has to with it.

    Not so for the shielded gate, which stands between the two: see attach().
    """
    loss = LOSSES["non-saturating"]
    G = nn.Sequential(nn.Linear(LATENT, 10), nn.ReLU(), nn.Linear(10, WIDTH)).double()
    D, z = InPlace("input"), noise()

    def total(G, D, score):
        fake = G(z)
        scores = D(fake)
        return score(scores) + fake.pow(2).mean()

    G1, D1 = copy.deepcopy((G, D))
    total(G1, D1, lambda scores: literal(loss, scores, 3)).backward()
    with attach(D, make_topk(3, gate="score")):
        total(G, D, loss.of).backward()
    assert error(gradients(G), gradients(G1)) <= 1e-12
