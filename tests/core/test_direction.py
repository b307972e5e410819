"""Which end of the scores is the realistic one: stated, voted for, latched, or asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from losses import (
    LATENT,
    LOSSES,
    TOLERANCE,
    WIDTH,
    Critic,
    backward,
    error,
    literal,
    make_generator,
    make_topk,
    noise,
    reals,
)
from stepping import SGD
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.errors import DirectionUnknown

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("way", ["line", "attach"])
@pytest.mark.parametrize("direction", ["high", "low"])
def test_a_given_direction_overrides_the_loss(way, direction):
    loss = LOSSES["hinge"]._replace(largest=direction == "high")
    G, D, z = make_generator(), Critic(), noise()
    G1, D1 = copy.deepcopy((G, D))
    expected, _ = backward(literal(loss, D1(G1(z)), 2), G1, D1)
    topk = make_topk(2, direction=direction)
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        found, _ = backward(loss.of(topk(out) if way == "line" else out), G, D)
    assert error(found, expected) <= TOLERANCE


def lsgan(way: str, topk: TopK) -> Callable[[float], list[int]]:
    """Takes one generator step of LSGAN to a target, and gives the kept rows.

    ``scores`` stand for the critic's of fakes.
    """
    G, D = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        G.weight.fill_(1)
        D.weight.fill_(1)
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    z = torch.tensor([[0.1], [0.4], [0.2], [0.3]])

    def step(target: float) -> list[int]:
        optimizer.zero_grad()
        with ExitStack() as stack:
            if way == "attach":
                stack.enter_context(attach(D, topk))
            fake = G(z)
            fake.retain_grad()
            out = D(fake)
            ((topk(out) if way == "line" else out) - target).pow(2).mean().backward()
            optimizer.step()
        return fake.grad.flatten().nonzero().flatten().tolist()

    return step


@pytest.mark.parametrize("way", ["line", "attach"])
def test_direction_is_latched_after_the_vote(way):
    """All scores pass LSGAN's target later: the gradient turns round, the direction may not."""
    topk = make_topk(2, 4)
    step = lsgan(way, topk)
    for _ in range(100):
        assert step(1.0) == [1, 3]
    assert topk.direction == "high"
    for _ in range(101):
        assert step(0.0) == [1, 3]
    assert topk.direction == "high"


@pytest.mark.parametrize("way", ["line", "attach"])
def test_nothing_is_computed_for_a_vote_that_is_over(way, monkeypatch):
    topk = make_topk(2, 4, direction="high")
    monkeypatch.setattr(topk.training.vote, "vote", lambda ballot, ballots: 1 / 0)
    assert lsgan(way, topk)(0.0) == [1, 3]
    topk = make_topk(2, 4)
    monkeypatch.setattr(topk.training.vote, "vote", lambda ballot, ballots: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lsgan(way, topk)(0.0)


@pytest.mark.parametrize("way", ["line", "attach"])
def test_a_vote_outlives_single_steps(way):
    """Within the vote the majority of the steps so far decides, not the present one."""
    topk = make_topk(2, 4)
    step = lsgan(way, topk)
    kept = [step(target) for target in (1, 1, 1, 0, 0)]
    assert kept == [[1, 3]] * 5
    assert topk.direction == "high"


class Pair(nn.Module):
    """BiGAN's critic of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH + LATENT, 1).double()

    def forward(self, x, z):
        return self.net(torch.cat([x, z], 1))


@pytest.mark.parametrize("direction", ["auto", "high"])
def test_opposite_ballots_in_one_step(direction):
    """BiGAN: the loss raises D(G(z), z) and lowers D(x, E(x))."""
    G, E, D = make_generator(), nn.Linear(WIDTH, LATENT).double(), Pair()
    optimizer = SGD([*G.parameters(), *E.parameters()], 1e-3)
    topk = TopK(direction=direction)

    def step():
        z, x = noise(), reals()
        (F.softplus(-D(G(z), z)).mean() + F.softplus(D(x, E(x))).mean()).backward()
        optimizer.step()

    with attach(D, topk):
        for _ in range(99):
            step()
        if direction == "auto":
            with pytest.raises(DirectionUnknown) as caught:
                step()
            for word in ["100 of 100 generator steps", "--direction high", "low"]:
                assert word in str(caught.value)
        else:
            step()
            assert topk.direction == "high"


def test_the_direction_of_low_losses(gan):
    for _ in range(101):
        gan.D(gan.G(noise())).mean().backward()
        gan.opt_G.step()
    assert gan.topk.direction == "low"


def test_a_saturated_loss_postpones_the_vote():
    """No gradient reaches the scores for 150 marked steps; then it is still to be found."""
    torch.manual_seed(0)
    G, D = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    topk = TopK(gamma=0.5, nu=0.5)
    with attach(D, topk):
        for step in range(260):
            optimizer.zero_grad()
            with topk.generator_step():
                scores = D(G(torch.randn(4, 2).double()))
                (scores * (0.0 if step < 150 else 1.0)).mean().backward()
            optimizer.step()
    assert (topk.steps, topk.direction) == (260, "low")


def test_a_maximizing_optimizer_needs_a_direction():
    torch.manual_seed(0)
    for direction in ("auto", "high"):
        G, D = nn.Linear(2, 2), nn.Linear(2, 1)
        optimizer = torch.optim.SGD(G.parameters(), 0.1, maximize=True)
        with attach(D, TopK(direction=direction)):
            D(G(torch.randn(4, 2))).mean().backward()
            if direction == "auto":
                with pytest.raises(DirectionUnknown, match="maximises"):
                    optimizer.step()
            else:
                optimizer.step()
