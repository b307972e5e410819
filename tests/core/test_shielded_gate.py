"""What the shielded gate gates are the inputs of a generator step, and of no critic step."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    LATENT,
    LOSSES,
    NORMS,
    TOLD,
    TOLERANCE,
    WIDTH,
    Critic,
    assert_same,
    backward,
    error,
    gradients,
    literal,
    make_generator,
    make_topk,
    noise,
    reals,
)
from torch import nn

from topk_plugin import attach
from topk_plugin.errors import GeneratorStepUnknown

pytestmark = pytest.mark.usefixtures("seeded")

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


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("call", ["positional", "keywords", "nested"])
@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_all_inputs_that_reach_the_generator_are_gated(gate, norm, call, told):
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
    with attach(D, make_topk(4, gate=gate, direction=loss.direction(told))):
        *found, critic = backward(loss.of(score(D, G, E)), G, E, D)
    assert error(found[0], expected[0]) <= TOLERANCE
    assert error(found[1], expected[1]) <= TOLERANCE
    if gate == "shielded":
        assert_same(critic, ungated)


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


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("norm", ["plain", "spectral", "batch"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CRITIC_STEPS)
def test_critic_step_is_untouched(name, frozen, norm, told):
    G, D, real, z = make_generator(), Critic(norm), reals(), noise()
    G.requires_grad_(not frozen)
    G1, D1 = copy.deepcopy((G, D))
    expected = CRITIC_STEPS[name](G1, D1, real, z)
    expected.backward()
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    topk = make_topk(3, direction=LOSSES["hinge"].direction(told))
    with attach(D, topk):
        found = CRITIC_STEPS[name](G, D, real, z)
        found.backward()
        assert torch.equal(found, expected)
        assert_same(gradients(D), gradients(D1))
        optimizer.step()
    assert topk.steps == 0
    assert topk.direction == ("undecided" if told == "vote" else "high")
    for a, b in zip(D.buffers(), D1.buffers(), strict=True):  # running means, u vectors
        assert torch.equal(a, b)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("norm", ["plain", "batch"])
def test_generator_step_with_latent_optimisation(norm, create_graph, told):
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
    topk = make_topk(4, direction=loss.direction(told))
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


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_a_generator_gradient_that_is_differentiated_again_is_untouched(way, told):
    """As unrolled GANs and penalties on the generator's gradient need it (create_graph=True)."""
    loss = LOSSES["non-saturating"]
    G, D, z = make_generator(), Critic("layer"), noise()
    weights = tuple(G.parameters())
    expected = torch.autograd.grad(loss.of(D(G(z))), weights, create_graph=True)
    topk = make_topk(3, gate="auto" if way == "line" else way, direction=loss.direction(told))
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        scores = topk(D(G(z))) if way == "line" else D(G(z))
        found = torch.autograd.grad(loss.of(scores), weights, create_graph=True)
        assert_same(list(found), list(expected))
