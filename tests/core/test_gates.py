"""Both gates' gradients against the paper's snippet written out, float64, to 1e-12."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from contextlib import ExitStack
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    KS,
    LATENT,
    LOSSES,
    NORMS,
    TOLD,
    TOLERANCE,
    Critic,
    TwoOutputs,
    assert_same,
    backward,
    best_rows,
    clear,
    error,
    gradients,
    literal,
    make_generator,
    make_topk,
    noise,
    reals,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from topk_plugin import TopK, attach

pytestmark = pytest.mark.usefixtures("seeded")

# --- losses x critics x k ---------------------------------------------------------------------


@pytest.mark.parametrize(("told", "k"), [*product(["vote"], KS), ("setting", KS[1])])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", ["line", "attach"])
def test_generator_gradient_is_the_papers(way, name, norm, k, told):
    """Two iterations of a loop whose critic is never frozen and sees un-detached fakes."""
    loss = LOSSES[name]
    G, D = make_generator(), Critic(norm, loss.tail)
    opt_G = torch.optim.Adam(G.parameters(), 1e-3, betas=(0.5, 0.9))
    opt_D = torch.optim.SGD(D.parameters(), 1e-2)
    topk = make_topk(k, reduction=loss.reduction, direction=loss.direction(told))
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        for _ in range(2):
            opt_D.zero_grad()
            sign = -1 if loss.largest else 1
            (sign * (D(reals()).mean() - D(G(noise())).mean())).backward()
            opt_D.step()

            z = noise()
            # copies are never gated, and start from the same weights, u vectors and statistics
            G1, D1 = copy.deepcopy((G, D))
            expected, _ = backward(literal(loss, D1(G1(z)), k), G1, D1)
            G2, D2 = copy.deepcopy((G, D))
            _, ungated = backward(loss.of(D2(G2(z))), G2, D2)

            scores = D(G(z))
            found, critic = backward(loss.of(topk(scores) if way == "line" else scores), G, D)
            assert error(found, expected) <= TOLERANCE
            if way == "attach":
                assert_same(critic, ungated)
            opt_G.step()
    report = topk.report()
    assert (report.steps, report.dropped) == (2, 2 * (BATCH - k))
    assert report.direction == ("high" if loss.largest else "low")


@pytest.mark.parametrize("gate", ["score", "shielded", "auto"])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_which_gate_decides_about_the_critics_gradient(gate, marked, frozen):
    """The score gate sends the snippet's gradient into the critic too, the shielded one none."""
    loss = LOSSES["non-saturating"]
    G, D, z = make_generator(), Critic("batch"), noise()
    D.requires_grad_(not frozen)
    G1, D1 = copy.deepcopy((G, D))
    expected, snippet = backward(literal(loss, D1(G1(z)), 4), G1, D1)
    G2, D2 = copy.deepcopy((G, D))
    _, ungated = backward(loss.of(D2(G2(z))), G2, D2)

    topk = make_topk(4, gate=gate)
    with attach(D, topk), ExitStack() as stack:
        if marked:
            stack.enter_context(topk.generator_step())
        found, critic = backward(loss.of(D(G(z))), G, D)
    assert error(found, expected) <= TOLERANCE
    if frozen:
        assert all(p.grad is None for p in D.parameters())
    elif gate == "score" or (gate == "auto" and marked):
        assert error(critic, snippet) <= TOLERANCE
        assert error(critic, ungated) > 1e-3
    else:
        assert_same(critic, ungated)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("way", ["line", "attach"])
def test_the_most_naive_oracle_agrees(way, told):
    """One backward pass for each kept row, added up in Python."""
    G, D, z = make_generator(batch_norm=False), Critic(), noise()
    G1, D1 = copy.deepcopy((G, D))
    scores = D1(G1(z)).flatten()
    rows = best_rows(scores.tolist(), 3)
    assert len(rows) == 3
    expected = [torch.zeros_like(p) for p in G1.parameters()]
    for i in rows:
        row = torch.autograd.grad(F.softplus(-scores[i]), list(G1.parameters()), retain_graph=True)
        for total, g in zip(expected, row, strict=True):
            total += g / 3

    topk = make_topk(3, direction=LOSSES["non-saturating"].direction(told))
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        found, _ = backward(F.softplus(-(topk(out) if way == "line" else out)).mean(), G, D)
    assert error(found, expected) <= TOLERANCE


# --- ways to run the backward ---------------------------------------------------------------------


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("gate", ["score", "shielded"])
@pytest.mark.parametrize("how", ["backward(inputs)", "grad", "twice", "checkpoint"])
def test_other_ways_to_run_the_backward(gate, how, told):
    loss = LOSSES["non-saturating"]
    G, D, z = make_generator(), Critic("layer"), noise()
    G1, D1 = copy.deepcopy((G, D))
    expected, _ = backward(literal(loss, D1(G1(z)), 3), G1, D1)
    with attach(D, make_topk(3, gate=gate, direction=loss.direction(told))):
        fake = G(z)
        total = loss.of(
            checkpoint(D, fake, use_reentrant=False) if how == "checkpoint" else D(fake)
        )
        clear(G, D)
        if how == "backward(inputs)":
            total.backward(inputs=list(G.parameters()))
            assert all(p.grad is None for p in D.parameters())
        elif how == "grad":
            for p, g in zip(
                G.parameters(), torch.autograd.grad(total, tuple(G.parameters())), strict=True
            ):
                p.grad = g
        elif how == "twice":
            total.backward(retain_graph=True)
            assert error(gradients(G), expected) <= TOLERANCE
            clear(G, D)
            total.backward()
        else:
            total.backward()
    assert error(gradients(G), expected) <= TOLERANCE


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_accumulation_ranks_each_micro_batch(gate, told):
    loss = LOSSES["hinge"]
    G, D = make_generator(batch_norm=False), Critic()
    parts = [noise(8), noise(8), noise(5)]  # the last one is partial
    topk = make_topk(4, gate=gate, direction=loss.direction(told))
    G1, D1 = copy.deepcopy((G, D))
    for z in parts:
        literal(loss, D1(G1(z)), topk.k(len(z))).backward()
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    with attach(D, topk):
        for z in parts:
            loss.of(D(G(z))).backward()
        optimizer.step()
    assert error(gradients(G), gradients(G1)) <= TOLERANCE
    assert topk.steps == 1
    assert (topk.report().rows, topk.report().dropped) == (21, 4 + 4 + 3)


# --- k = B --------------------------------------------------------------------------------------


@functools.cache
def trained_without(dtype: torch.dtype) -> list[Tensor]:
    return train("without", TopK(), dtype)


def train(way: str, topk: TopK, dtype: torch.dtype) -> list[Tensor]:
    """30 iterations of an ordinary DCGAN-like loop; every tensor that training changed."""
    torch.manual_seed(1)
    G = nn.Sequential(
        nn.ConvTranspose2d(LATENT, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.ConvTranspose2d(8, 1, 3, 2), nn.Tanh(),
    ).to(dtype)  # fmt: skip
    D = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.LeakyReLU(0.2, True), nn.Conv2d(8, 1, 3)
    ).to(dtype)
    opt_G = torch.optim.Adam(G.parameters(), 2e-3, betas=(0.5, 0.999))
    opt_D = torch.optim.Adam(D.parameters(), 2e-3, betas=(0.5, 0.999))
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        for i in range(30):
            real = torch.randn(6, 1, 7, 7, dtype=dtype)
            z = torch.randn(6, LATENT, 1, 1, dtype=dtype)
            opt_D.zero_grad()
            (F.softplus(-D(real)).mean() + F.softplus(D(G(z))).mean()).backward()
            opt_D.step()
            opt_G.zero_grad()
            scores = D(G(z))
            scores = topk(scores) if way == "line" else scores
            # a sum's gradient is an expanded scalar, another layout than a mean's
            (F.softplus(-scores).mean() if i % 2 else -scores.sum() / 6).backward()
            opt_G.step()
    return [*G.state_dict().values(), *D.state_dict().values()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gate", ["auto", "score", "shielded"])
@pytest.mark.parametrize("way", ["line", "attach"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_k_of_B_is_bit_identical(gamma, way, gate, dtype):
    """gamma < 1 before the first end_epoch keeps the whole batch too."""
    topk = TopK(gamma=gamma, gate=gate)
    assert_same(train(way, topk, dtype), trained_without(dtype))
    assert (topk.steps, topk.report().rows, topk.report().dropped) == (30, 180, 0)


def test_the_comparison_at_k_of_B_can_fail():
    different = train("line", make_topk(5, 6), torch.float64)
    assert error(different, trained_without(torch.float64)) > 1e-4


# --- what a gated step does not do --------------------------------------------------------------


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("way", ["line", "score", "shielded", "observe"])
def test_no_number_is_read_from_the_device(way, told):
    G, D = make_generator(), Critic("batch")
    topk = make_topk(
        BATCH if way == "observe" else 4,
        gate=way if way == "score" else "auto",
        direction=LOSSES["non-saturating"].direction(told),
    )
    optimizer = torch.optim.SGD(G.parameters(), 0.1, momentum=0.9)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        for step in range(3):
            with Recorder() as recorder:
                clear(G, D)
                out = D(G(noise()))
                F.softplus(-(topk(out) if way == "line" else out)).mean().backward()
                optimizer.step()
            topk.end_epoch()
            assert any("sort" in name for name in recorder.names), "the gate did not run"
            found = [n for n in recorder.names if "_local_scalar_dense" in n or "nonzero" in n]
            # whether the loss weighs anything yet, in the first one
            assert found == [] or (step == 0 and way != "line" and len(found) == 1)
    assert topk.steps == 3


class Mark(torch.autograd.Function):
    """An identity whose node lives as long as the graph that it is part of."""

    nodes: list[weakref.ref] = []

    @staticmethod
    def forward(ctx, x):
        Mark.nodes.append(weakref.ref(ctx))
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


class MarkedCritic(TwoOutputs):
    def forward(self, x):
        return super().forward(Mark.apply(x))


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("with_backward", [False, True])
@pytest.mark.parametrize("way", ["line", "score", "shielded", "observe"])
def test_nothing_outlives_the_step(way, with_backward, told):
    """Fakes, scores and graphs are freed by their reference counts, without the collector."""
    G, D = make_generator(), MarkedCritic("batch", tuple)
    topk = make_topk(
        BATCH if way == "observe" else 4,
        gate=way if way == "score" else "auto",
        direction=LOSSES["non-saturating"].direction(told),
    )
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    alive: list[weakref.ref] = []

    def step() -> None:
        fake = Mark.apply(G(noise()))
        scores, features, _ = topk(D(fake)) if way == "line" else D(fake)
        alive.extend(map(weakref.ref, (fake, scores, features)))
        if with_backward:
            (F.softplus(-scores).mean() + features.mean()).backward()
            optimizer.step()

    Mark.nodes.clear()
    gc.collect()
    gc.disable()
    try:
        with ExitStack() as stack:
            if way != "line":
                stack.enter_context(attach(D, topk))
            for _ in range(20):
                step()
            assert [ref() for ref in alive] == [None] * 60
            assert [ref() for ref in Mark.nodes] == [None] * 40
    finally:
        gc.enable()
