"""Wherever a critic's output has its scores, and whatever else is in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    KS,
    LOSSES,
    TOLD,
    TOLERANCE,
    WIDTH,
    Critic,
    TwoOutputs,
    assert_same,
    backward,
    best_rows,
    error,
    literal,
    make_generator,
    make_topk,
    noise,
)
from torch import Tensor, nn

from topk_plugin import TopK, attach
from topk_plugin.errors import DirectionUnknown, ScoreShapeError

pytestmark = pytest.mark.usefixtures("seeded")

PLACES: dict[str, Callable[[Tensor], Any]] = {
    "(B,)": lambda s: s.reshape(-1),
    "(B, 1)": lambda s: s.reshape(-1, 1),
    "(B, 1, 1, 1)": lambda s: s.reshape(-1, 1, 1, 1),
    "expanded": lambda s: s.reshape(-1, 1, 1).expand(-1, 1, 3),
    "not contiguous": lambda s: torch.cat([s, s + 1], 1)[:, 0],
    "tuple": lambda s: (s, torch.ones(2)),
    "list": lambda s: [s],
    "dict": lambda s: {"features": torch.cat([s, s], 1).detach(), "score": s},
    "StudioGAN": lambda s: {"h": s.detach() * 2, "adv_output": s.flatten(), "label": None},
    "nested": lambda s: ((s, {"info": "text"}), 3),
}


def score_in(output: Any) -> Tensor:
    if isinstance(output, dict):
        return output["adv_output"] if "adv_output" in output else output["score"]
    return output if isinstance(output, Tensor) else score_in(output[0])


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_wherever_the_score_is(way, place, told):
    class Wrapped(Critic):
        def forward(self, x):
            return PLACES[place](super().forward(x))

    G, D, z = make_generator(), Wrapped("batch"), noise()
    G1, D1 = copy.deepcopy((G, D))
    plain = D1(G1(z))
    scores = score_in(plain).reshape(BATCH, -1)
    rows = best_rows(scores.mean(1).tolist(), 4)
    expected, _ = backward(F.softplus(-scores[rows]).mean(), G1, D1)

    topk = make_topk(
        4, gate="auto" if way == "line" else way, direction=LOSSES["lsgan"].direction(told)
    )
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        output = D(G(z))
        output = topk(output) if way == "line" else output
        assert type(output) is type(plain)
        assert score_in(output).shape == score_in(plain).shape
        assert torch.equal(score_in(output), score_in(plain))
        found, _ = backward(F.softplus(-score_in(output)).mean(), G, D)
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("form", [tuple, list, dict])
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_other_outputs_in_the_loss_keep_their_gradient(way, form, norm, k, told):
    loss = LOSSES["lsgan"]
    G, D, z = make_generator(), TwoOutputs(norm, form), noise()
    codes = torch.randint(3, (BATCH,))

    def of_others(h: Tensor, q: Tensor) -> Tensor:
        return 0.3 * (h.mean(0) - 1).pow(2).sum() + F.cross_entropy(q, codes)

    def outputs(critic, fake):
        found = critic(fake)
        return found.values() if form is dict else found

    G1, D1 = copy.deepcopy((G, D))
    s, h, q = outputs(D1, G1(z))
    expected, snippet = backward(literal(loss, s, k) + of_others(h, q), G1, D1)
    G2, D2 = copy.deepcopy((G, D))
    s, h, q = outputs(D2, G2(z))
    _, ungated = backward(loss.of(s) + of_others(h, q), G2, D2)

    topk = make_topk(k, gate="auto" if way == "line" else way, direction=loss.direction(told))
    with ExitStack() as stack:
        if way == "line":
            s, h, q = outputs(lambda x: topk(D(x)), G(z))
        else:
            stack.enter_context(attach(D, topk))
            s, h, q = outputs(D, G(z))
        found, critic = backward(loss.of(s) + of_others(h, q), G, D)
    assert error(found, expected) <= TOLERANCE
    if way == "shielded":
        assert_same(critic, ungated)
    else:
        assert error(critic, snippet) <= TOLERANCE


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_companions_follow_the_kept_rows(way, norm, k):
    """Dropped rows send nothing back through any output, kept rows weigh B/k in all of them."""
    loss, codes = LOSSES["lsgan"], torch.randint(3, (BATCH,))
    G, D, z = make_generator(), TwoOutputs(norm, dict), noise()

    def total(found):
        return loss.of(found["score"]) + 0.5 * F.cross_entropy(found["q"], codes)

    G1, D1 = copy.deepcopy((G, D))
    found = D1(G1(z))
    kept = found["score"].flatten().topk(k).indices
    literal_loss = loss.of(found["score"][kept])
    literal_loss = literal_loss + 0.5 * F.cross_entropy(found["q"][kept], codes[kept])
    expected, snippet = backward(literal_loss, G1, D1)
    G2, D2 = copy.deepcopy((G, D))
    _, ungated = backward(total(D2(G2(z))), G2, D2)

    topk = make_topk(k, gate="auto" if way == "line" else way, companions="follow")
    with ExitStack() as stack:
        if way == "line":
            found, critic = backward(total(topk(D(G(z)))), G, D)
        else:
            stack.enter_context(attach(D, topk))
            found, critic = backward(total(D(G(z))), G, D)
    assert error(found, expected) <= TOLERANCE
    if way == "shielded":
        assert_same(critic, ungated)
    else:
        assert error(critic, snippet) <= TOLERANCE


@pytest.mark.parametrize("companions", ["follow", "keep"])
@pytest.mark.parametrize("direction", ["high", "low", "auto"])
@pytest.mark.parametrize("plugins", [(), ("random-k",)])
def test_a_later_call_follows_the_rows_of_the_first(plugins, direction, companions):
    """An auxiliary critic call with other labels: its backward runs before the first call's."""
    k, codes = 3, torch.randint(3, (BATCH,))
    G, D, z = make_generator(), TwoOutputs("plain", dict), noise()
    topk = make_topk(k, direction=direction, companions=companions, plugins=plugins)
    seen = []
    topk.observers.append(lambda step: seen.append(step.calls[0].kept))
    sign = 1 if direction == "high" else -1
    fake = G(z).detach().requires_grad_()
    first = topk(D(fake))
    if direction == "auto" and companions == "follow":  # its loss has not been seen
        with pytest.raises(DirectionUnknown, match="^follow: 3 of 8 rows are to be kept"):
            topk.follow(D(fake))
        topk.training.vote.assumed = -1.0  # as an adapter states
        first = topk(D(fake))
    second = topk.follow(D(fake + 0.1))
    assert set(second) == set(D(fake))
    (-sign * first["score"].mean() + F.cross_entropy(second["q"], codes)).backward()
    topk.step()
    (kept,) = seen
    assert int(kept.sum()) == k
    if not plugins:
        best = (sign * first["score"].flatten()).topk(k).indices
        assert torch.equal(kept.nonzero().flatten(), best.sort().values)
    rows = fake.grad.abs().sum(1) > 0
    assert torch.equal(rows, kept if companions == "follow" else torch.ones_like(kept))


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("way", ["line", "attach"])
def test_a_subclass_of_tensor_may_not_be_moved(way, told):
    """As BigGAN-PyTorch's latents, whose kind spreads to all that is computed from them."""

    class Latent(torch.Tensor):
        def to(self, *args, **kwargs):
            raise AttributeError("no kind")

    k = 3
    G, D, z = make_generator(), Critic("plain"), noise()
    G1, D1 = copy.deepcopy((G, D))
    expected, _ = backward(literal(LOSSES["lsgan"], D1(G1(z)), k), G1, D1)
    topk = make_topk(k, direction=LOSSES["lsgan"].direction(told))
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        output = D(G(z.as_subclass(Latent)))
        assert type(output) is Latent
        output = topk(output) if way == "line" else output
        found, _ = backward(LOSSES["lsgan"].of(output), G, D)
    assert error(found, expected) <= TOLERANCE


def test_a_loss_of_the_other_outputs_alone_is_not_gated():
    G, D, z = make_generator(), TwoOutputs("batch", tuple), noise()
    G1, D1 = copy.deepcopy((G, D))
    expected = backward(D1(G1(z))[1].pow(2).mean(), G1, D1)
    topk = make_topk(2)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    with attach(D, topk):
        found = backward(D(G(z))[1].pow(2).mean(), G, D)
        optimizer.step()
    assert_same(sum(found, []), sum(expected, []))
    assert topk.steps == 0


class PatchCritic(nn.Module):
    """(B, WIDTH) seen as a signal to a patch map (B, 1, 1, 4), or to two heads."""

    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, (1, 3))
        self.patches = nn.Conv2d(5, 1, 1)
        self.scale = nn.Linear(WIDTH, 1)
        self.heads = heads
        self.double()

    def forward(self, x):
        patches = self.patches(F.leaky_relu(self.conv(x.reshape(len(x), 1, 1, WIDTH)), 0.2))
        return {"fine": patches, "other": [x * 2, self.scale(x)]} if self.heads else patches


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", ["hinge", "lsgan", "non-saturating", "sum", "wasserstein-low"])
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_patch_maps_rank_by_their_mean(way, name, k, told):
    loss = LOSSES[name]
    G, D, z = make_generator(), PatchCritic(), noise()
    G1, D1 = copy.deepcopy((G, D))
    patches = D1(G1(z))
    assert patches.shape == (BATCH, 1, 1, 4)
    means = [sum(row.flatten().tolist()) / 4 for row in patches]
    expected, _ = backward(loss.of(patches[best_rows(means, k, loss.largest)]), G1, D1)

    topk = make_topk(
        k,
        reduction=loss.reduction,
        gate="auto" if way == "line" else way,
        direction=loss.direction(told),
    )
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        found, _ = backward(loss.of(topk(out) if way == "line" else out), G, D)
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_named_heads_share_one_ranking(way, k, told):
    """A fine patch map and a global score; each sample's rank is the average of both."""
    loss = LOSSES["lsgan"]
    G, D, z = make_generator(), PatchCritic(heads=True), noise()
    G1, D1 = copy.deepcopy((G, D))
    out = D1(G1(z))
    fine, coarse, echo = out["fine"], out["other"][1], out["other"][0]
    ranks = [(f.mean().item() + c.item()) / 2 for f, c in zip(fine, coarse, strict=True)]
    rows = best_rows(ranks, k)
    total = loss.of(fine[rows]) + loss.of(coarse[rows]) + echo.mean()
    expected, _ = backward(total, G1, D1)

    topk = make_topk(
        k,
        heads=("fine", "other.1"),
        gate="auto" if way == "line" else way,
        direction=loss.direction(told),
    )
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        out = topk(out) if way == "line" else out
        total = loss.of(out["fine"]) + loss.of(out["other"][1]) + out["other"][0].mean()
        found, _ = backward(total, G, D)
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("direction", ["auto", "high", "low"])
@pytest.mark.parametrize(
    "scores",
    [torch.ones(()), torch.ones(BATCH, 3), torch.ones(BATCH, dtype=torch.complex64)],
    ids=["0-d", "(B, 3)", "complex"],
)
def test_what_is_no_score_is_refused_whatever_is_known(direction, scores):
    topk = TopK(gamma=0.5, direction=direction)
    with pytest.raises(ScoreShapeError):
        topk(scores.requires_grad_())
