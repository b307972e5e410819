"""Steps in which the adversarial loss weighs nothing yet are none of a training with top-k."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LATENT, WIDTH, error, make_generator
from stepping import SGD
from torch import nn
from torch.utils.data import DataLoader

from topk_plugin import TopK, attach

WARM, EPOCHS = 2, 5


def weighed_by_gradients(reconstruction, adversarial, last):
    """As VQGAN's loss: both gradients by the generator's last layer."""
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).detach()


WEIGHTS = {
    "0 until then": lambda *_: 1.0,
    "by gradients of the last layer": weighed_by_gradients,
}


def train(G, D, loader, weigh, topk=None, first=WARM):
    """Top-k by hand, where there is no ``topk``; its epochs begin with the ``first``."""
    opt_G, opt_D = SGD(G.parameters(), 0.05), SGD(D.parameters(), 0.05)
    last = [p for p in G.parameters() if p.dim() == 2][-1]
    for epoch in range(EPOCHS):
        on = float(epoch >= WARM)
        for x in loader:
            opt_D.zero_grad()
            fake = G(x)
            real = x[:, :1].expand(-1, WIDTH)
            of_critic = F.softplus(D(fake.detach())).mean() + F.softplus(-D(real)).mean()
            (on * of_critic).backward()
            opt_D.step()
            opt_G.zero_grad()
            scores = D(fake)
            if topk is None:
                k = max(BATCH // 4, int(0.5 ** max(0, epoch - first) * BATCH))
                scores = scores[scores.flatten().topk(k).indices]
            loss, adversarial = fake.square().mean(), F.softplus(-scores).mean()
            (loss + on * weigh(loss, adversarial, last) * adversarial).backward()
            opt_G.step()


def ended(weigh, topk=None, **how):
    torch.manual_seed(0)
    G, D = make_generator(), nn.Linear(WIDTH, 1).double()
    data = torch.randn(3 * BATCH, LATENT, dtype=torch.float64)
    loader = DataLoader(data, batch_size=BATCH)
    with nullcontext() if topk is None else attach(D, topk, loader=loader):
        train(G, D, loader, weigh, topk, **how)
    return [*G.state_dict().values(), *D.state_dict().values()]


@pytest.mark.parametrize("weigh", WEIGHTS.values(), ids=WEIGHTS)
def test_epochs_begin_where_the_critic_counts(weigh):
    topk = TopK(gamma=0.5, nu=0.25)
    weights = ended(weigh, topk)
    assert (topk.steps, topk.epoch) == (3 * (EPOCHS - WARM), EPOCHS - WARM)
    assert error(weights, ended(weigh)) < 1e-12
    assert error(weights, ended(weigh, first=0)) > 1e-6


def test_a_loss_that_is_0_later_counts():
    """A saturated critic's, say: the training has begun."""
    torch.manual_seed(0)
    G, D, topk = make_generator(), nn.Linear(WIDTH, 1).double(), TopK(gamma=0.5)
    opt = SGD(G.parameters(), 0.1)
    with attach(D, topk):
        for weight in (0.0, 1.0, 0.0, 1.0):
            opt.zero_grad()
            (weight * D(G(torch.randn(BATCH, LATENT, dtype=torch.float64))).mean()).backward()
            opt.step()
    assert topk.steps == 3


def test_a_marked_step_counts():
    """Whoever marks it says that it is one."""
    torch.manual_seed(0)
    G, D, topk = make_generator(), nn.Linear(WIDTH, 1).double(), TopK(gamma=0.5)
    with attach(D, topk), topk.generator_step():
        (0.0 * D(G(torch.randn(BATCH, LATENT, dtype=torch.float64))).mean()).backward()
        SGD(G.parameters(), 0.1).step()
    assert topk.steps == 1
