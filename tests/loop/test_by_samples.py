"""Loss balancers: each loss is differentiated by the samples, and the sum is sent on by hand."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LATENT, WIDTH, error, make_generator, noise, reals
from stepping import SGD
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.errors import GeneratorStepUnknown

pytestmark = pytest.mark.usefixtures("seeded")

K = 3


def make_critic(layer: str) -> nn.Module:
    between = {"plain": nn.Identity(), "BatchNorm": nn.BatchNorm1d(8)}[layer]
    return nn.Sequential(nn.Linear(WIDTH, 8), between, nn.Tanh(), nn.Linear(8, 1)).double()


def send(fake, *losses):
    """What a balancer does with losses of ``fake``."""
    sent = [torch.autograd.grad(loss, fake, retain_graph=True)[0] for loss in losses]
    fake.backward(sum(g / g.norm(dim=1).mean() for g in sent))


class Loop:
    def __init__(self, layer="plain", topk=None, detach=True, after=lambda fake: fake):
        self.G, self.D, self.detach = make_generator(), make_critic(layer), detach
        self.opt_G, self.opt_D = SGD(self.G.parameters(), 0.05), SGD(self.D.parameters(), 0.05)
        self.topk, self.after = topk or TopK(gamma=0.5, nu=K / BATCH), after

    def critic_step(self):
        self.opt_D.zero_grad()
        fake = self.G(torch.randn(BATCH, LATENT, dtype=torch.float64))
        of_fakes = self.D(fake.detach() if self.detach else fake)
        (F.softplus(of_fakes).mean() + F.softplus(-self.D(reals() + 1)).mean()).backward()
        self.opt_D.step()

    def generator_step(self, k=None, mark=False):
        self.opt_G.zero_grad()
        fake = self.G(torch.randn(BATCH, LATENT, dtype=torch.float64))
        with self.topk.generator_step() if mark else nullcontext():
            scores = self.D(self.after(fake))
            if k is not None:
                scores = scores[scores.flatten().topk(k).indices]
            send(fake, F.softplus(-scores).mean(), fake.square().mean())
        self.opt_G.step()

    def train(self, hand=False, mark=False, epochs=3):
        for _ in range(epochs):
            for _ in range(25):
                self.critic_step()
                self.generator_step(self.topk.k(BATCH) if hand else None, mark)
            self.topk.end_epoch()

    @property
    def ends(self):
        return [*self.G.state_dict().values(), *self.D.state_dict().values()]


AFTER = {  # what the critic gets of the samples
    "the samples": lambda fake: fake,
    "computed on": lambda fake: (fake * 0.5 + 0.1).reshape(BATCH, -1),
    "joined": lambda fake: torch.cat([fake[:, :2], fake[:, 2:].tanh()], 1),
}


@pytest.mark.parametrize("mark", [True, False], ids=["marked", "unknown"])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "not detached"])
@pytest.mark.parametrize("layer", ["plain", "BatchNorm"])
@pytest.mark.parametrize("after", AFTER)
def test_it_is_top_k(after, layer, detach, mark):
    """Through probing, and the learning of places."""
    torch.manual_seed(0)
    hand = Loop(layer, detach=detach, after=AFTER[after])
    hand.train(hand=True)
    torch.manual_seed(0)
    loop = Loop(layer, detach=detach, after=AFTER[after])
    with attach(loop.D, loop.topk):
        loop.train(mark=mark)
    report = loop.topk.report()
    assert (report.direction, report.steps) == ("high", 75)
    assert report.dropped == 25 * (BATCH // 2) + 25 * (BATCH - K)
    assert error(loop.ends, hand.ends) < 1e-12


def test_a_resumed_run_knows_it():
    torch.manual_seed(0)
    whole = Loop()
    with attach(whole.D, whole.topk):
        whole.train(epochs=1)
        state = whole.topk.state_dict()
        nets = [{k: v.clone() for k, v in n.state_dict().items()} for n in (whole.G, whole.D)]
        seed = torch.get_rng_state()
        whole.train(epochs=1)
    assert state["by_samples"] is True
    again = Loop()
    for net, saved in zip((again.G, again.D), nets, strict=True):
        net.load_state_dict(saved)
    again.topk.load_state_dict(state)
    torch.set_rng_state(seed)
    with attach(again.D, again.topk):
        again.train(epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(again.ends, whole.ends, strict=True))
    assert again.topk.report().dropped == whole.topk.report().dropped > 0


def test_where_it_shows_only_when_rows_are_to_be_dropped_it_is_told():
    loop = Loop(topk=TopK(gamma=0.5, direction="high"))
    loop.topk.end_epoch()
    with attach(loop.D, loop.topk):
        with pytest.raises(GeneratorStepUnknown, match=r"sent on by hand.*generator_step"):
            loop.generator_step()
        loop.generator_step()
    assert loop.topk.report().dropped == BATCH // 2


@pytest.mark.parametrize("by", ["samples", "latents", "latents, marked"])
def test_other_gradients_by_the_input_are_left_alone(by):
    """A score of anomaly, or latent optimisation, beside an ordinary loss."""
    loop = Loop(topk=TopK(gamma=0.25, direction="high"))
    G, D, topk = loop.G, loop.D, loop.topk
    topk.end_epoch()
    with attach(D, topk):
        for _ in range(3):
            z = noise().requires_grad_()
            fake = G(z)
            at = fake if by == "samples" else z
            with topk.paused():
                expected = torch.autograd.grad(F.softplus(D(fake)).sum(), at, retain_graph=True)
            with topk.generator_step() if "marked" in by else nullcontext():
                found = torch.autograd.grad(F.softplus(D(fake)).sum(), at, retain_graph=True)
                loop.opt_G.zero_grad()
                F.softplus(-D(G(noise()))).mean().backward()
            assert torch.equal(*found, *expected)
            loop.opt_G.step()
    assert not topk.training.by_samples
    assert (topk.report().steps, topk.report().rows) == (3, 3 * BATCH)


def test_a_gradient_by_samples_in_the_critics_step_is_its_own():
    """Samples that are moved to fool the critic; then the generator learns without it."""
    loop = Loop(topk=TopK(gamma=0.25, direction="high"))
    G, D, topk = loop.G, loop.D, loop.topk
    with attach(D, topk):
        for _ in range(3):
            fake = G(noise())
            (moves,) = torch.autograd.grad(F.softplus(-D(fake)).mean(), fake)
            loop.opt_D.zero_grad()
            (F.softplus(D((fake - moves).detach())) + F.softplus(-D(reals()))).mean().backward()
            loop.opt_D.step()
            loop.opt_G.zero_grad()
            G(noise()).square().mean().backward()
            loop.opt_G.step()
            loop.opt_G.zero_grad()
            F.softplus(-D(G(noise()))).mean().backward()
            loop.opt_G.step()
    assert not topk.training.by_samples
    assert topk.report().steps == 3


def test_a_gradient_by_samples_asks_no_other_rows():
    """Those of other micro-batches, or ranks, may never come."""
    loop = Loop(topk=TopK(gamma=0.25, direction="high"))
    loop.topk.end_epoch()
    with attach(loop.D, loop.topk), loop.topk.accumulate(steps=2):
        for _ in range(2):
            fake = loop.G(noise())
            scores = loop.D(fake)
            (found,) = torch.autograd.grad(scores.sum(), fake, retain_graph=True)
            assert found.abs().sum(1).min() > 0


def weighed(G, D, k=None):
    """A loss that is weighed by both gradients at the samples, by hand where there is a ``k``."""
    fake = G(noise())
    scores = D(fake)
    if k is not None:
        scores = scores[scores.flatten().topk(k).indices]
    losses = fake.square().mean(), F.softplus(-scores).mean()
    norms = [torch.autograd.grad(loss, fake, retain_graph=True)[0].norm() for loss in losses]
    return losses[0] + (norms[0] / norms[1]).detach() * losses[1]


@pytest.mark.parametrize("goes_on", [False, True], ids=["", "from a record"])
@pytest.mark.parametrize("marked", [False, True], ids=["unknown", "marked"])
def test_a_gradient_by_samples_that_weighs_the_same_call_is_masked_too(marked, goes_on):
    loop = Loop(topk=TopK(gamma=0.25, nu=0.25, direction="high"))
    G, D, topk = loop.G, loop.D, loop.topk
    with attach(D, topk):
        loop.opt_G.zero_grad()
        weighed(G, D).backward()
        loop.opt_G.step()
    state = topk.state_dict()
    if goes_on:
        topk = TopK(gamma=0.25, nu=0.25, direction="high")
        topk.load_state_dict(state)
    topk.end_epoch()
    torch.manual_seed(1)
    loop.opt_G.zero_grad()
    weighed(G, D, BATCH // 4).backward()
    expected = [p.grad.clone() for p in G.parameters()]
    loop.opt_G.zero_grad()
    torch.manual_seed(1)
    with attach(D, topk), topk.generator_step() if marked else nullcontext():
        weighed(G, D).backward()
        found = [p.grad.clone() for p in G.parameters()]
        loop.opt_G.step()
    assert error(found, expected) < 1e-12
    report = topk.report()
    assert (report.last_batch, report.last_k, report.rows) == (
        BATCH, BATCH // 4, BATCH * (1 if goes_on else 2),
    )  # fmt: skip
