"""The gates' gradients against the paper's snippet written out, float64, to 1e-12."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    LATENT,
    LOSSES,
    NORMS,
    WIDTH,
    Critic,
    assert_same,
    best_rows,
    clear,
    error,
    gradients,
    literal,
    make_generator,
    make_topk,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from topk_plugin import TopK, attach
from topk_plugin.errors import DirectionUnknown, GeneratorStepUnknown

TOLERANCE = 1e-12
KS = [BATCH, 6, 4, 1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def noise(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, LATENT, dtype=torch.float64)


def reals(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, WIDTH, dtype=torch.float64)


def backward(loss: Tensor, *nets: nn.Module) -> list[list[Tensor]]:
    """The gradients of each net by ``loss`` alone."""
    clear(*nets)
    loss.backward()
    return [gradients(net) for net in nets]


# --- losses x critics x k ---------------------------------------------------------------------


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", ["line", "attach"])
def test_generator_gradient_is_the_papers(way, name, norm, k):
    """Two iterations of a loop whose critic is never frozen and sees un-detached fakes."""
    loss = LOSSES[name]
    G, D = make_generator(), Critic(norm, loss.tail)
    opt_G = torch.optim.Adam(G.parameters(), 1e-3, betas=(0.5, 0.9))
    opt_D = torch.optim.SGD(D.parameters(), 1e-2)
    topk = make_topk(k, reduction=loss.reduction)
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


@pytest.mark.parametrize("way", ["line", "attach"])
def test_the_most_naive_oracle_agrees(way):
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

    topk = make_topk(3)
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        found, _ = backward(F.softplus(-(topk(out) if way == "line" else out)).mean(), G, D)
    assert error(found, expected) <= TOLERANCE


# --- outputs other than (B, 1) ------------------------------------------------------------------

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


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_wherever_the_score_is(way, place):
    class Wrapped(Critic):
        def forward(self, x):
            return PLACES[place](super().forward(x))

    G, D, z = make_generator(), Wrapped("batch"), noise()
    G1, D1 = copy.deepcopy((G, D))
    plain = D1(G1(z))
    scores = score_in(plain).reshape(BATCH, -1)
    rows = best_rows(scores.mean(1).tolist(), 4)
    expected, _ = backward(F.softplus(-scores[rows]).mean(), G1, D1)

    topk = make_topk(4, gate="auto" if way == "line" else way)
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


class TwoOutputs(Critic):
    """Score, and features and a Q head (InfoGAN) that the generator's loss reads too."""

    def __init__(self, norm: str, form: type) -> None:
        super().__init__(norm)
        self.q = nn.Linear(16, 3).double()
        self.form = form

    def forward(self, x):
        h = self.body(x)
        outputs = {"score": self.score(h), "h": h, "q": self.q(h)}
        return outputs if self.form is dict else self.form(outputs.values())


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("form", [tuple, list, dict])
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_other_outputs_in_the_loss_keep_their_gradient(way, form, norm, k):
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

    topk = make_topk(k, gate="auto" if way == "line" else way)
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
        topk.vote.assumed = -1.0  # as an adapter states
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


@pytest.mark.parametrize("way", ["line", "attach"])
def test_a_subclass_of_tensor_may_not_be_moved(way):
    """As BigGAN-PyTorch's latents, whose kind spreads to all that is computed from them."""

    class Latent(torch.Tensor):
        def to(self, *args, **kwargs):
            raise AttributeError("no kind")

    k = 3
    G, D, z = make_generator(), Critic("plain"), noise()
    G1, D1 = copy.deepcopy((G, D))
    expected, _ = backward(literal(LOSSES["lsgan"], D1(G1(z)), k), G1, D1)
    topk = make_topk(k)
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


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", ["hinge", "lsgan", "non-saturating", "sum", "wasserstein-low"])
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_patch_maps_rank_by_their_mean(way, name, k):
    loss = LOSSES[name]
    G, D, z = make_generator(), PatchCritic(), noise()
    G1, D1 = copy.deepcopy((G, D))
    patches = D1(G1(z))
    assert patches.shape == (BATCH, 1, 1, 4)
    means = [sum(row.flatten().tolist()) / 4 for row in patches]
    expected, _ = backward(loss.of(patches[best_rows(means, k, loss.largest)]), G1, D1)

    topk = make_topk(k, reduction=loss.reduction, gate="auto" if way == "line" else way)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        found, _ = backward(loss.of(topk(out) if way == "line" else out), G, D)
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_named_heads_share_one_ranking(way, k):
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

    topk = make_topk(k, heads=("fine", "other.1"), gate="auto" if way == "line" else way)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        out = topk(out) if way == "line" else out
        total = loss.of(out["fine"]) + loss.of(out["other"][1]) + out["other"][0].mean()
        found, _ = backward(total, G, D)
    assert error(found, expected) <= TOLERANCE


# --- inputs -------------------------------------------------------------------------------------


class PairCritic(nn.Module):
    """BiGAN's D(x, z), with an option nobody differentiates."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH + LATENT, 16), NORMS[norm](), nn.LeakyReLU(0.2), nn.Linear(16, 1)
        ).double()

    def forward(self, x, z=None, *, slope=1.0, extra=None):
        assert extra is None or "label" in extra
        return slope * self.net(torch.cat([x, z], 1))


@pytest.mark.parametrize("call", ["positional", "keywords", "nested"])
@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_all_inputs_that_reach_the_generator_are_gated(gate, norm, call):
    loss = LOSSES["non-saturating"]
    G, D, w = make_generator(), PairCritic(norm), noise()
    E = nn.Linear(LATENT, LATENT).double()

    def score(critic, generator, encoder):
        z = encoder(w)
        if call == "positional":
            return critic(generator(z), z)
        if call == "keywords":
            return critic(z=z, x=generator(z), slope=0.5)
        return critic(generator(z), z, extra={"label": torch.arange(BATCH), "none": None})

    G1, D1, E1 = copy.deepcopy((G, D, E))
    expected = backward(literal(loss, score(D1, G1, E1), 4), G1, E1, D1)
    G2, D2, E2 = copy.deepcopy((G, D, E))
    ungated = backward(loss.of(score(D2, G2, E2)), G2, E2, D2)[2]
    with attach(D, make_topk(4, gate=gate)):
        *found, critic = backward(loss.of(score(D, G, E)), G, E, D)
    assert error(found[0], expected[0]) <= TOLERANCE
    assert error(found[1], expected[1]) <= TOLERANCE
    if gate == "shielded":
        assert_same(critic, ungated)


@pytest.mark.parametrize("gate", ["score", "shielded"])
@pytest.mark.parametrize("how", ["backward(inputs)", "grad", "twice", "checkpoint"])
def test_other_ways_to_run_the_backward(gate, how):
    loss = LOSSES["non-saturating"]
    G, D, z = make_generator(), Critic("layer"), noise()
    G1, D1 = copy.deepcopy((G, D))
    expected, _ = backward(literal(loss, D1(G1(z)), 3), G1, D1)
    with attach(D, make_topk(3, gate=gate)):
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


@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_accumulation_ranks_each_micro_batch(gate):
    loss = LOSSES["hinge"]
    G, D = make_generator(batch_norm=False), Critic()
    parts = [noise(8), noise(8), noise(5)]  # the last one is partial
    topk = make_topk(4, gate=gate)
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


# --- critic steps -------------------------------------------------------------------------------


def undetached(G, D, real, z):
    return (1 - D(real)).relu().mean() + (1 + D(G(z))).relu().mean()


def penalty(D, x):
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return ((g.flatten(1).norm(dim=1) - 1) ** 2).mean()


def not_a_leaf(x):
    return x.clone().requires_grad_() * 1


def mixed(real, fake):
    a = torch.linspace(0, 1, len(real), dtype=torch.float64)[:, None]
    return a * real + (1 - a) * fake


def gp_leaf(G, D, real, z):
    x = mixed(real, G(z)).detach().requires_grad_()
    return undetached(G, D, real, z) + 10 * penalty(D, x)


def gp_not_leaf(G, D, real, z):
    fake = G(z)
    x = mixed(real, fake)
    x = x if x.requires_grad else not_a_leaf(x)  # the generator may be frozen
    return D(fake).mean() - D(real).mean() + 10 * penalty(D, x)


def gp_alone(G, D, real, z):
    fake = G(z)
    return penalty(D, fake if fake.requires_grad else not_a_leaf(fake))


def r1_leaf(G, D, real, z):
    x = real.clone().requires_grad_()
    out = D(x)
    (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.softplus(-out).mean() + F.softplus(D(G(z))).mean() + 5 * g.pow(2).sum(1).mean()


def r1_augmented(G, D, real, z):
    def augment(x):
        return x.flip(1) * 0.9 + 0.1

    x = augment(real.clone().requires_grad_())
    out = D(x)
    (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.softplus(-out).mean() + F.softplus(D(augment(G(z)))).mean() + g.pow(2).sum(1).mean()


def concatenated(G, D, real, z):
    real_scores, fake_scores = D(torch.cat([real, G(z)])).chunk(2)
    return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()


def latent_optimised(create_graph):
    def loss(G, D, real, z):
        z = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(D(G(z)).sum(), z, create_graph=create_graph)
        return undetached(G, D, real, z + 0.9 * g)

    return loss


CRITIC_STEPS = {
    "un-detached fakes": undetached,
    "penalty, leaf": gp_leaf,
    "penalty, non-leaf": gp_not_leaf,
    "penalty alone": gp_alone,
    "R1, leaf": r1_leaf,
    "R1, augmented": r1_augmented,
    "concatenated": concatenated,
    "latent optimisation": latent_optimised(create_graph=False),
    "latent optimisation, unrolled": latent_optimised(create_graph=True),
}


@pytest.mark.parametrize("norm", ["plain", "spectral", "batch"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CRITIC_STEPS)
def test_critic_step_is_untouched(name, frozen, norm):
    G, D, real, z = make_generator(), Critic(norm), reals(), noise()
    G.requires_grad_(not frozen)
    G1, D1 = copy.deepcopy((G, D))
    expected = CRITIC_STEPS[name](G1, D1, real, z)
    expected.backward()
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    topk = make_topk(3)
    with attach(D, topk):
        found = CRITIC_STEPS[name](G, D, real, z)
        found.backward()
        assert torch.equal(found, expected)
        assert_same(gradients(D), gradients(D1))
        optimizer.step()
    assert topk.steps == 0
    assert topk.direction == "undecided"
    for a, b in zip(D.buffers(), D1.buffers(), strict=True):  # running means, u vectors
        assert torch.equal(a, b)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("norm", ["plain", "batch"])
def test_generator_step_with_latent_optimisation(norm, create_graph):
    """Only the loss is gated, not the inner gradient, nor what flows back through it."""
    loss = LOSSES["non-saturating"]
    G, D, z = make_generator(), Critic(norm), noise()

    def scores(G, D):
        start = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(D(G(start)).sum(), start, create_graph=create_graph)
        return D(G(start + 0.9 * g))

    G1, D1 = copy.deepcopy((G, D))
    expected, _ = backward(literal(loss, scores(G1, D1), 4), G1, D1)
    G2, D2 = copy.deepcopy((G, D))
    _, ungated = backward(loss.of(scores(G2, D2)), G2, D2)
    topk = make_topk(4)
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    if not create_graph:
        with attach(D, topk):
            found, critic = backward(loss.of(scores(G, D)), G, D)
        assert error(found, expected) <= TOLERANCE
        assert_same(critic, ungated)
        return
    # the critic's parameters lie upstream of its own input: nothing can spare them unless the
    # step is known
    with attach(D, topk):
        _, critic = backward(loss.of(scores(G, D)), G, D)
        assert_same(critic, ungated)
        with pytest.raises(GeneratorStepUnknown, match="upstream of its own input"):
            optimizer.step()
        with topk.generator_step():
            found, _ = backward(loss.of(scores(G, D)), G, D)
        assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("leaf", [False, True])
def test_input_gradients_are_untouched(leaf, frozen, norm):
    """MEG's anomaly score: the norm of the energy's gradient by the sample."""
    G, D, z = make_generator(), Critic(norm), noise()
    D.requires_grad_(not frozen)
    x = reals().requires_grad_() if leaf else G(z)

    def norms():
        (g,) = torch.autograd.grad(D(x).sum(), x, retain_graph=True)
        return g

    expected = norms()
    with attach(D, make_topk(2)):
        assert torch.equal(norms(), expected)


@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_a_generator_gradient_that_is_differentiated_again_is_untouched(way):
    """As unrolled GANs and penalties on the generator's gradient need it (create_graph=True)."""
    loss = LOSSES["non-saturating"]
    G, D, z = make_generator(), Critic("layer"), noise()
    weights = tuple(G.parameters())
    expected = torch.autograd.grad(loss.of(D(G(z))), weights, create_graph=True)
    topk = make_topk(3, gate="auto" if way == "line" else way)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        scores = topk(D(G(z))) if way == "line" else D(G(z))
        found = torch.autograd.grad(loss.of(scores), weights, create_graph=True)
        assert_same(list(found), list(expected))


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


# --- precision and odd numbers ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3, 7, 48])
def test_the_weight_is_applied_in_float32(dtype, batch):
    """B/k rounded to 16 bits before the product would be off by up to one more rounding."""
    k = max(1, batch // 3 + 1) if batch > 1 else 1
    scores = torch.randn(batch, 1).to(dtype).requires_grad_()
    incoming = torch.rand(batch, 1).to(dtype) + 0.5
    make_topk(k, batch, direction="high")(scores).backward(incoming)
    rows = best_rows(scores.flatten().tolist(), k)
    expected = torch.zeros_like(incoming)
    scale = torch.tensor(batch / k, dtype=torch.float32)
    for i in rows:
        expected[i] = (incoming[i].float() * scale).to(dtype)
    assert torch.equal(scores.grad, expected)
    assert scores.grad.dtype == dtype


@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_nan_of_a_dropped_row_never_leaks(way):
    """NaN images in two rows: their scores and gradients are NaN, and both are dropped."""
    G, D, z = make_generator(batch_norm=False), Critic(), noise()
    bad = torch.zeros(BATCH, 1, dtype=torch.float64)
    bad[[1, 4]] = torch.nan

    def scores(G, D):
        return D(G(z) + bad)

    good = [0, 2, 3, 5, 6, 7]
    G1, D1 = copy.deepcopy((G, D))
    s = D1(G1(z)[good]).flatten()
    expected, _ = backward(F.softplus(-s.topk(4).values).mean(), G1, D1)
    topk = make_topk(4, direction="high", gate="auto" if way == "line" else way)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = scores(G, D)
        out = topk(out) if way == "line" else out
        # the sum over rows that a mean's gradient is, without the NaN of the value itself
        total = F.softplus(-out)
        clear(G, D)
        total.backward(torch.full_like(total, 1 / BATCH))
        found = gradients(G)
        optimizer.step()
    assert all(torch.isfinite(g).all() for g in found)
    assert error(found, expected) <= TOLERANCE
    assert topk.report().nonfinite == 2


def test_nan_rows_are_kept_when_there_is_nothing_better():
    scores = torch.tensor([torch.nan, 2.0, torch.nan, 1.0], requires_grad=True)
    topk = make_topk(3, 4, direction="high")
    topk(scores).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(scores.grad, torch.tensor([1.0, 2.0, 0.0, 4.0]) * 4 / 3)
    torch.optim.SGD([scores], 0.0).step()
    assert topk.report().nonfinite == 2


@pytest.mark.parametrize("direction", ["high", "low"])
def test_infinite_scores_rank_and_pass(direction):
    values = torch.tensor([torch.inf, 0.0, -torch.inf, 1.0, torch.nan])
    scores = values.clone().requires_grad_()
    out = make_topk(2, 5, direction=direction)(scores)
    assert torch.equal(out.nan_to_num(7.0), values.nan_to_num(7.0))
    out.backward(torch.ones(5))
    kept = {"high": [0, 3], "low": [1, 2]}[direction]
    assert scores.grad.nonzero().flatten().tolist() == kept


# --- direction ----------------------------------------------------------------------------------


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


def lsgan_step(way: str, topk: TopK, target: float) -> list[int]:
    """One generator step of LSGAN; the kept rows. ``scores`` stand for the critic's of fakes."""
    G, D = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        G.weight.fill_(1)
        D.weight.fill_(1)
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    z = torch.tensor([[0.1], [0.4], [0.2], [0.3]])
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(D, topk))
        fake = G(z)
        fake.retain_grad()
        out = D(fake)
        ((topk(out) if way == "line" else out) - target).pow(2).mean().backward()
        optimizer.step()
    return fake.grad.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("way", ["line", "attach"])
def test_direction_is_latched_after_the_vote(way):
    """All scores pass LSGAN's target later: the gradient turns round, the direction may not."""
    topk = make_topk(2, 4)
    for _ in range(100):
        assert lsgan_step(way, topk, target=1.0) == [1, 3]
    assert topk.direction == "high"
    for _ in range(101):
        assert lsgan_step(way, topk, target=0.0) == [1, 3]
    assert topk.direction == "high"


@pytest.mark.parametrize("way", ["line", "attach"])
def test_a_vote_outlives_single_steps(way):
    """Within the vote the majority of the steps so far decides, not the present one."""
    topk = make_topk(2, 4)
    kept = [lsgan_step(way, topk, target) for target in (1, 1, 1, 0, 0)]
    assert kept == [[1, 3]] * 5
    assert topk.direction == "high"


# --- what a gated step does not do --------------------------------------------------------------


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["line", "score", "shielded", "observe"])
def test_no_number_is_read_from_the_device(way):
    G, D = make_generator(), Critic("batch")
    topk = make_topk(BATCH if way == "observe" else 4, gate=way if way == "score" else "auto")
    optimizer = torch.optim.SGD(G.parameters(), 0.1, momentum=0.9)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        for _ in range(3):
            with Recorder() as recorder:
                clear(G, D)
                out = D(G(noise()))
                F.softplus(-(topk(out) if way == "line" else out)).mean().backward()
                optimizer.step()
            topk.end_epoch()
            assert any("sort" in name for name in recorder.names), "the gate did not run"
            found = [n for n in recorder.names if "_local_scalar_dense" in n or "nonzero" in n]
            assert found == []
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


@pytest.mark.parametrize("with_backward", [False, True])
@pytest.mark.parametrize("way", ["line", "score", "shielded", "observe"])
def test_nothing_outlives_the_step(way, with_backward):
    """Fakes, scores and graphs are freed by their reference counts, without the collector."""
    G, D = make_generator(), MarkedCritic("batch", tuple)
    topk = make_topk(BATCH if way == "observe" else 4, gate=way if way == "score" else "auto")
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
