"""Generated samples that are in one batch with real ones compete among themselves alone."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LATENT, WIDTH, error, gradients, make_generator, noise, reals
from stepping import SGD
from torch import nn

from topk_plugin import TopK, attach

pytestmark = pytest.mark.usefixtures("seeded")

K = 3
REALS = 5

ORDERS = {  # a batch, and where in it the fakes are
    "behind": (lambda real, fake: torch.cat([real, fake]), REALS),
    "in front": (lambda real, fake: torch.cat([fake, real]), 0),
    "between": (lambda real, fake: torch.cat([real[:2], fake, real[2:]], dim=-2), 2),
    "from two calls": (lambda real, fake: torch.cat([real, *fake.chunk(2)]), REALS),
    "computed on": (lambda real, fake: torch.cat([real, fake]) * 2 - 1 + torch.ones(1), REALS),
    "squashed since": (lambda real, fake: torch.cat([real, fake]).mul(3).tanh(), REALS),
    "of another type since": (lambda real, fake: torch.cat([real, fake]).float().double(), REALS),
    "of another shape since": (
        lambda real, fake: torch.cat([real, fake]).view(BATCH + REALS, 1, WIDTH).flatten(1),
        REALS,
    ),
    "of another shape, without a row a sample": (
        lambda real, fake: torch.cat([real, fake]).view(-1, 2).reshape(BATCH + REALS, WIDTH),
        REALS,
    ),
    "reals that have a gradient": (
        lambda real, fake: torch.cat([real.clone().requires_grad_(), fake]),
        REALS,
    ),
}


def make_critic(layer: str) -> nn.Module:
    between = {
        "plain": nn.Identity(),
        "BatchNorm": nn.BatchNorm1d(8),
    }[layer]
    return nn.Sequential(nn.Linear(WIDTH, 8), between, nn.LeakyReLU(0.2), nn.Linear(8, 1)).double()


def parts(scores, start):
    of_reals = torch.cat([scores[:start], scores[start + BATCH :]])
    return scores[start : start + BATCH], of_reals


def loss(of_fakes, of_reals):
    """Also of reals, as relativistic ones are."""
    return F.softplus(-of_fakes).mean() + 0.3 * of_reals.square().mean()


def by_hand(scores, start):
    of_fakes, of_reals = parts(scores, start)
    return loss(of_fakes[of_fakes.flatten().topk(K).indices], of_reals)


def at_k(**settings) -> TopK:
    topk = TopK(gamma=K / BATCH, nu=K / BATCH, direction="high", **settings)
    topk.end_epoch()
    return topk


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unknown"])
@pytest.mark.parametrize("layer", ["plain", "BatchNorm"])
@pytest.mark.parametrize("order", ORDERS)
def test_it_is_top_k_of_the_generated_ones(order, layer, marked):
    join, start = ORDERS[order]
    G, D, topk, z, x = make_generator(), make_critic(layer), at_k(), noise(), reals()[:REALS]
    batch = join(x, G(z))
    by_hand(D(batch), start).backward()
    expected = gradients(G)
    of_critic = [p.grad.clone() for p in D.parameters()]
    for p in (*G.parameters(), *D.parameters()):
        p.grad = None
    batch = join(x, G(z))
    with attach(D, topk), topk.generator_step() if marked else nullcontext():
        scores = D(batch)
        assert scores.shape == (BATCH + REALS, 1)
        loss(*parts(scores, start)).backward()
        SGD(G.parameters(), 0.0).step()
    assert error(gradients(G), expected) < (1e-6 if "type" in order else 1e-12)
    if marked:  # else the critic's own are those without top-k
        assert error([p.grad for p in D.parameters()], of_critic) < 1e-6
    report = topk.report()
    assert (report.rows, report.dropped) == (BATCH, BATCH - K)


RESHAPED = {  # what becomes of a joined batch (2B, N), and how many rows of it each sample makes
    "packs of two": (lambda batch: batch.view(-1, 2 * WIDTH), 0.5),
    "frames": (lambda batch: batch.view(-1, 2, WIDTH // 2).flatten(0, 1), 2),
}


@pytest.mark.parametrize("name", RESHAPED)
def test_rows_that_are_made_of_joined_samples(name):
    change, each = RESHAPED[name]
    G, topk, z, x = make_generator(), at_k(), noise(), reals()
    D = nn.Linear(int(WIDTH / each), 1).double()

    def of_fakes():
        return D(change(torch.cat([x, G(z)])))[int(BATCH * each) :]

    scores, k = of_fakes(), int(BATCH * each * K / BATCH)
    F.softplus(-scores[scores.flatten().topk(k).indices]).mean().backward()
    expected = gradients(G)
    G.zero_grad()
    with attach(D, topk), topk.generator_step():
        F.softplus(-of_fakes()).mean().backward()
        SGD(G.parameters(), 0.0).step()
    assert error(gradients(G), expected) < 1e-12


@pytest.mark.parametrize("dim", [1, 2])
def test_what_was_joined_otherwise_and_flattened_is_no_mixed_batch(dim):
    """Of what is flat since, the place where it was joined is no place of a row any more."""
    G, D, topk, z = make_generator(), nn.Linear(2 * WIDTH, 1).double(), at_k(), noise()
    with attach(D, topk), topk.generator_step():
        fake = G(z)[:, None]
        F.softplus(-D(torch.cat([fake, torch.ones_like(fake)], dim).flatten(1))).mean().backward()
        SGD(G.parameters(), 0.0).step()
    assert (topk.report().rows, topk.report().dropped) == (BATCH, BATCH - K)


def test_a_batch_without_rows_is_nobody_s():
    """As of a class of which a batch has no samples."""
    G, D, topk = make_generator(batch_norm=False), nn.Linear(WIDTH, 1).double(), at_k()
    with attach(D, topk):
        (D(G(noise())).mean() + D(G(noise()[:0])).sum()).backward()
        SGD(G.parameters(), 0.1).step()
        topk(D(G(noise()[:0]))).sum().backward()
    assert topk.report().rows == BATCH


def train(G, D, topk, detached, hand):
    """Each step of either network sees fakes and reals in one batch."""
    opt_G, opt_D = SGD(G.parameters(), 0.05), SGD(D.parameters(), 0.05)
    for epoch in range(3):
        for step in range(40):
            opt_G.zero_grad(), opt_D.zero_grad()
            fake = G(torch.randn(BATCH, LATENT, dtype=torch.float64))
            batch = torch.cat([fake, torch.randn_like(fake)[:REALS] + 1])
            of_generator = step % 2
            if not of_generator and detached:
                batch = batch.detach()
            of_fakes, of_reals = parts(D(batch), 0)
            if not of_generator:
                (F.softplus(of_fakes).mean() + F.softplus(-of_reals).mean()).backward()
                opt_D.step()
                continue
            if hand:
                k = max(K, int(0.5**epoch * BATCH))
                of_fakes = of_fakes[of_fakes.flatten().topk(k).indices]
            F.softplus(-of_fakes).mean().backward()
            opt_G.step()
        topk.end_epoch()


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "not detached"])
@pytest.mark.parametrize("layer", ["plain", "BatchNorm"])
def test_a_whole_training(layer, detached):
    """Through probing and learning: the place of a coupled critic is learned after 20 steps."""
    ends = []
    for hand in (True, False):
        torch.manual_seed(0)
        G, D, topk = make_generator(), make_critic(layer), TopK(gamma=0.5, nu=K / BATCH)
        with nullcontext() if hand else attach(D, topk):
            train(G, D, topk, detached, hand)
        ends.append([*G.state_dict().values(), *D.state_dict().values()])
    report = topk.report()
    assert (report.direction, report.steps) == ("high", 60)
    assert report.dropped == 20 * (BATCH // 2) + 20 * (BATCH - K)
    assert error(*ends) < 1e-12


@pytest.mark.parametrize("companions", ["keep", "follow"])
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unknown"])
def test_other_outputs_of_the_same_rows(marked, companions):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.score = nn.Linear(WIDTH, 4).double(), nn.Linear(4, 1).double()

        def forward(self, x):
            features = torch.tanh(self.features(x))
            return [features, features.detach(), self.score(features)]

    def of_features(features, rows):
        return features[REALS:][rows].square().sum() + features[:REALS].cos().sum()

    G, D = make_generator(), Several()
    topk, z, x = at_k(companions=companions), noise(), reals()[:REALS]
    rows = slice(None)
    features, _, scores = D(torch.cat([x, G(z)]))
    best = scores[REALS:].flatten().topk(K).indices
    if companions == "follow":
        rows, weight = best, BATCH / K
    else:
        weight = 1.0
    rest = features[:REALS].cos().sum()
    (F.softplus(-scores[REALS:][best]).mean() + weight * features[REALS:][rows].square().sum()
     + rest).backward()  # fmt: skip
    expected = gradients(G)
    for p in G.parameters():
        p.grad = None
    with attach(D, topk), topk.generator_step() if marked else nullcontext():
        features, _, scores = D(torch.cat([x, G(z)]))
        assert len(features) == len(_) == len(scores) == BATCH + REALS
        (F.softplus(-scores[REALS:]).mean() + of_features(features, slice(None))).backward()
        SGD(G.parameters(), 0.0).step()
    assert error(gradients(G), expected) < 1e-12


def test_images_that_are_resized_since():
    G = nn.Sequential(make_generator(), nn.Unflatten(1, (1, 2, 3)))
    D = nn.Conv2d(1, 1, 3).double()
    topk, z, x = at_k(), noise(), torch.randn(REALS, 1, 2, 3, dtype=torch.float64)

    def scores():
        return D(F.interpolate(torch.cat([x, G(z)]), scale_factor=2, mode="bilinear")).mean(
            (1, 2, 3)
        )

    of_fakes, _ = parts(scores(), REALS)
    F.softplus(-of_fakes[of_fakes.topk(K).indices]).mean().backward()
    expected = gradients(G)
    for p in G.parameters():
        p.grad = None
    with attach(D, topk), topk.generator_step():
        F.softplus(-parts(scores(), REALS)[0]).mean().backward()
    assert error(gradients(G), expected) < 1e-12
    assert topk.report().rows == BATCH


def test_rows_whose_order_is_not_known_compete_with_all():
    G, D, topk = make_generator(), make_critic("plain"), at_k()
    with attach(D, topk), topk.generator_step():
        batch = torch.cat([reals(), G(noise())])[torch.randperm(2 * BATCH)]
        F.softplus(-D(batch)).mean().backward()
        SGD(G.parameters(), 0.0).step()
    assert topk.report().rows == 2 * BATCH
