"""The object that a user holds: switched off, gathering rows, saved and loaded."""

from __future__ import annotations

import copy
import io
from contextlib import ExitStack, suppress

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, assert_same, best_rows, error, gradients, make_topk, noise, reals
from stepping import SGD, Setup
from torch import Tensor, nn

from topk_plugin import TopK, attach
from topk_plugin.errors import DirectionUnknown, ResumeMismatch, ScoreShapeError

pytestmark = pytest.mark.usefixtures("seeded")

# --- switched off -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["line", "attach"])
@pytest.mark.parametrize("how", ["paused", "disabled", "no_grad"])
def test_off_means_untouched(how, way):
    topk = make_topk(2, enabled=how != "disabled")
    setup, z = Setup(topk), noise()
    G, D = copy.deepcopy((setup.G, setup.D))
    F.softplus(-D(G(z))).mean().backward()
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(setup.D, topk))
        if how == "paused":
            stack.enter_context(topk.paused())
            stack.enter_context(topk.paused())  # nests
        gated = topk if way == "line" else lambda scores: scores
        if how == "no_grad":
            with torch.no_grad():
                scores = setup.D(setup.G(z))
                assert gated(scores) is scores
            return
        scores = setup.D(setup.G(z))
        assert gated(scores) is scores
        F.softplus(-scores).mean().backward()
        setup.opt_G.step()
    assert_same(gradients(setup.G, setup.D), gradients(G, D))
    assert topk.steps == 0


def test_paused_ends(gan):
    with suppress(ZeroDivisionError), gan.topk.paused():
        raise ZeroDivisionError
    gan.generator_step()
    assert gan.topk.report().dropped == 4


# --- gather -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["high", "low"])
def test_gather_keeps_rows_in_order_with_their_companions(direction):
    topk = make_topk(3, direction=direction)
    scores = torch.randn(BATCH, 1, dtype=torch.float64, requires_grad=True)
    labels, images = torch.arange(BATCH), torch.randn(BATCH, 2, 3)
    rows = best_rows(scores.flatten().tolist(), 3, direction == "high")
    found, kept, pictures = topk.gather(scores, labels, images)
    assert kept.tolist() == rows
    assert torch.equal(found, scores[rows])
    assert torch.equal(pictures, images[rows])
    assert torch.equal(topk.gather(scores), scores[rows])
    with torch.no_grad():
        assert torch.equal(topk.gather(scores), scores[rows])
    weights = torch.rand(3, 1, dtype=torch.float64)
    (found * weights).sum().backward()
    expected = torch.zeros_like(scores)
    expected[rows] = weights
    assert torch.equal(scores.grad, expected)


def test_gather_equals_the_literal_relativistic_loss():
    """Relativistic-average: a loss that couples the rows, which the gate cannot serve."""
    setup, z = Setup(), noise()
    real_scores = setup.D(reals()).detach()

    def loss(fake_scores):
        return (
            F.softplus(-(fake_scores - real_scores.mean())).mean()
            + F.softplus(real_scores - fake_scores.mean()).mean()
        )

    G, D = copy.deepcopy((setup.G, setup.D))
    loss(D(G(z)).flatten().topk(4).values[:, None]).backward()
    setup.topk = make_topk(4, direction="high")
    loss(setup.topk.gather(setup.D(setup.G(z)))).backward()
    assert error(gradients(setup.G), gradients(G)) <= 1e-12


def test_gather_of_the_whole_batch_is_the_identity_and_votes():
    topk = TopK(gamma=0.5, nu=0.5)
    net = nn.Linear(2, 1)
    optimizer = SGD(net.parameters(), 0.1)
    labels = torch.arange(4)
    scores = net(torch.randn(4, 2))
    found, kept = topk.gather(scores, labels)
    assert torch.equal(found, scores)
    assert kept is labels
    topk.gather(scores).mean().backward()  # low is realistic
    optimizer.step()
    assert (topk.steps, topk.direction) == (1, "low")
    topk.end_epoch()
    scores = net(torch.randn(4, 2))
    rows = best_rows(scores.flatten().tolist(), 2, largest=False)
    assert torch.equal(topk.gather(scores), scores[rows])
    topk.gather(scores).mean().backward()
    optimizer.step()
    report = topk.report()
    assert (report.steps, report.rows, report.dropped, report.last_k) == (2, 8, 2, 2)


def test_gather_does_not_guess():
    with pytest.raises(DirectionUnknown, match="2 of 4 rows") as caught:
        make_topk(2, 4).gather(torch.randn(4, 1, requires_grad=True))
    assert 'direction="high"' in str(caught.value)


def test_gather_checks_companions():
    with pytest.raises(ScoreShapeError, match=r"\(3,\), expected 4 rows"):
        TopK().gather(torch.randn(4, 1), torch.arange(3))


@pytest.mark.parametrize("enabled", [True, False])
def test_gather_switched_off(enabled):
    topk = make_topk(2, 4, enabled=enabled)
    scores, labels = torch.randn(4, 1, requires_grad=True), torch.arange(4)
    with topk.paused():
        assert topk.gather(scores) is scores
        assert topk.gather(scores, labels) == (scores, labels)


# --- state --------------------------------------------------------------------------------------


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("steps", [0, 5, 100, 120])
def test_state_round_trip(steps):
    """The resumed run goes on as the uninterrupted one, direction and vote included."""
    settings = {"gamma": 0.9, "nu": 0.2, "restore": (3, 70)}
    topk = TopK(**settings)
    scores = torch.randn(8, 1, requires_grad=True)
    optimizer = SGD([scores], 0.0)

    def step(topk, sign):
        scores.grad = None
        (sign * topk(scores)).mean().backward()
        optimizer.step()
        return scores.grad

    for i in range(steps):
        step(topk, 1.0)
        if i % 2:
            topk.end_epoch()
    resumed = TopK(**settings)
    resumed.load_state_dict(saved(topk.state_dict()))
    assert (resumed.epoch, resumed.steps, resumed.k(8)) == (topk.epoch, topk.steps, topk.k(8))
    assert resumed.direction == topk.direction
    for sign in [-1.0] * 3 + [1.0] * 100:
        assert torch.equal(step(resumed, sign), step(topk, sign))
        topk.end_epoch()
        resumed.end_epoch()
    assert resumed.direction == topk.direction
    for key, value in topk.state_dict().items():
        other = resumed.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other


def test_resume_under_other_settings_shows_the_difference():
    state = saved(TopK(gamma=0.9, nu=0.2, direction="low").state_dict())
    topk = TopK(gamma=0.99, nu=0.2)
    with pytest.raises(ResumeMismatch) as caught:
        topk.load_state_dict(state)
    message = str(caught.value)
    assert "gamma: 0.9 in the checkpoint, 0.99 now" in message
    assert "direction: 'low' in the checkpoint, 'auto' now" in message
    assert "nu:" not in message
    assert "restore:" not in message
    assert (topk.epoch, topk.k(64)) == (0, 64)


def test_what_was_saved_before_there_was_a_way_back_goes_on_without_one():
    topk = TopK(gamma=0.9)
    topk.end_epoch()
    state = topk.state_dict()
    del state["settings"]["restore"]
    TopK(gamma=0.9).load_state_dict(state)
    with pytest.raises(ResumeMismatch, match=r"restore: \[\] in the checkpoint, \[2, 4\] now"):
        TopK(gamma=0.9, restore=(2, 4)).load_state_dict(state)


def test_resume_with_a_contradicting_start_epoch():
    topk = TopK()
    for _ in range(3):
        topk.end_epoch()
    TopK(start_epoch=3).load_state_dict(topk.state_dict())
    with pytest.raises(ResumeMismatch, match="epoch: 3 in the checkpoint, start_epoch 4 now"):
        TopK(start_epoch=4).load_state_dict(topk.state_dict())
