"""Critics that score packs of samples (Lin et al., 2018): packs are ranked, exactly as by hand."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from topk_plugin import TopK, attach
from topk_plugin.errors import ScoreShapeError

PACK, BATCH = 3, 12
Adam = torch.optim.Adam


class Packed(nn.Module):
    """Joins the samples of a pack; its scores are (B / PACK, 1)."""

    def __init__(self, normed):
        super().__init__()
        norm = [nn.BatchNorm1d(8)] if normed else []
        self.net = nn.Sequential(nn.Linear(2 * PACK, 8), *norm, nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, x, labels=None):
        return self.net(x.reshape(-1, 2 * PACK))


def best_alone(scores, k):
    """The literal form: what the loss sees of the packs."""
    return scores.flatten().sort(descending=True, stable=True).values[:k]


def trained(normed, detached, how, **settings):
    """The weights after a training in which k falls from 4 packs to 2, and its TopK."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    D = Packed(normed).double()
    opt_g, opt_d = Adam(G.parameters(), 1e-2), Adam(D.parameters(), 1e-2)
    topk = TopK(gamma=0.5, nu=0.5, enabled=how != "by hand", **settings)
    around = topk.generator_step if how == "marked" else contextlib.nullcontext

    def noise():
        return torch.randn(BATCH, 2, dtype=torch.float64)

    with attach(D, topk) if how != "by hand" else contextlib.nullcontext():
        for epoch in (0, 1):
            for _ in range(30):  # so that a place is learned in the second
                fake = G(noise())
                opt_d.zero_grad()
                of_fakes = D(fake.detach() if detached else fake)
                (softplus(-D(noise())).mean() + softplus(of_fakes).mean()).backward()
                opt_d.step()
                opt_g.zero_grad()
                with around():
                    scores = D(G(noise()))
                    if how == "by hand":
                        scores = best_alone(scores, 4 // (1 + epoch))
                    softplus(-scores).mean().backward()
                opt_g.step()
            topk.end_epoch()
    return [p.detach() for p in (*G.parameters(), *D.parameters())], topk


@pytest.mark.parametrize("how", ["nothing known", "never spared", "marked"])
@pytest.mark.parametrize("detached", [True, False], ids=["detached", "not detached"])
@pytest.mark.parametrize("normed", [True, False], ids=["BatchNorm", "none"])
def test_the_best_packs_are_kept_as_by_hand(normed, detached, how):
    settings = {"spare": False} if how == "never spared" else {}
    weights, topk = trained(normed, detached, how, **settings)
    by_hand, _ = trained(normed, detached, "by hand")
    for mine, its in zip(weights, by_hand, strict=True):
        assert torch.allclose(mine, its, rtol=0, atol=1e-12)
    report = topk.report()
    assert (report.rows, report.dropped) == (60 * 4, 30 * 2)
    assert (report.last_batch, report.last_k) == (4, 2)


def one_step(D, *arguments):
    """What observers are told of it."""
    told, topk = [], TopK(direction="high")
    topk.observers.append(told.append)
    G = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    with attach(D, topk):
        softplus(-D(G(torch.randn(BATCH, 2)), *arguments)).mean().backward()
        optimizer.step()
    (step,) = told
    return step


def test_labels_of_samples_are_not_those_of_packs():
    step = one_step(Packed(False), torch.arange(BATCH))
    (call,) = step.calls
    assert call.scores.shape == call.kept.shape == (BATCH // PACK,)
    assert call.labels is None
    assert step.batch == BATCH // PACK


def test_the_average_of_a_batch_is_no_score_of_a_pack():
    class Average(Packed):
        def forward(self, x):
            return super().forward(x).mean(0, keepdim=True)

    with pytest.raises(ScoreShapeError, match="averaged inside the critic"):
        one_step(Average(False))
