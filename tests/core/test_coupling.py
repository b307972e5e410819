"""Losses that couple the rows of a batch are told from those that add up over samples."""

import pytest
import torch
import torch.nn.functional as F
from losses import Critic, make_generator, make_topk, noise
from torch import nn
from torch.utils.checkpoint import checkpoint
from torches import reads_shapes

from topk_plugin import TopK, attach
from topk_plugin.core.coupling import coupling, coupling_of_gates, ranking_of

BATCH = 8
pytestmark = reads_shapes
torch.manual_seed(0)
REAL = torch.randn(BATCH, 1).double()
SCORES = torch.tensor([0.3, 2.0, -1.1, 0.8, 1.4, -0.2, 0.5, -0.7]).double().view(BATCH, 1)
bce = F.binary_cross_entropy_with_logits


def lse(x, y):
    return (x.exp().sum() + y.exp().sum()).log()


# of the scores of fakes and of reals, which have no gradient; companions of B rows are gathered
PER_SAMPLE = {
    "hinge": lambda f, r: -f.mean(),
    "sum": lambda f, r: -f.sum(),
    "sum over B": lambda f, r: -f.sum() / len(f),
    "non-saturating": lambda f, r: F.softplus(-f).mean(),
    "minimax": lambda f, r: torch.log(1 - torch.sigmoid(f)).mean(),
    "lsgan": lambda f, r: ((f - 1) ** 2).mean(),
    "lsgan mse_loss": lambda f, r: 0.5 * F.mse_loss(f, torch.ones_like(f)),
    "lsgan l1": lambda f, r: F.l1_loss(f, torch.ones_like(f)),
    "lsgan huber": lambda f, r: F.huber_loss(f, torch.ones_like(f)),
    "smooth": lambda f, r: F.smooth_l1_loss(f, torch.ones_like(f), reduction="sum"),
    "soft margin": lambda f, r: F.soft_margin_loss(f, torch.ones_like(f)),
    "wgan": lambda f, r: f.mean(0).view(1).squeeze(),
    "wgan minus reals": lambda f, r: -(f.mean() - r.mean()),
    "bce": lambda f, r: F.binary_cross_entropy(torch.sigmoid(f), torch.ones_like(f)),
    "bce with logits": lambda f, r: bce(f, torch.ones_like(f)),
    "soft labels": lambda f, r: bce(f, 0.7 + 0.5 * torch.sigmoid(r)),
    "weights": lambda f, r: (torch.sigmoid(r) * F.softplus(-f)).sum(),
    "matmul weights": lambda f, r: torch.sigmoid(r).T @ F.softplus(-f),
    "dot weights": lambda f, r: torch.dot(r.flatten(), F.softplus(-f).flatten()),
    "mv weights": lambda f, r: F.softplus(-f).T.mv(r[:, 0]).sum(),
    "amp": lambda f, r: bce(f, torch.ones_like(f)) * 65536,
    "amp tensor": lambda f, r: bce(f, torch.ones_like(f)).float() * torch.tensor(65536.0),
    "accumulation": lambda f, r: F.softplus(-f).mean() / 4,
    "adaptive": lambda f, r: -f.mean() * REAL.norm() / (REAL.mean() + 3),
    "paired relativistic": lambda f, r: bce(f - r, torch.ones_like(f)),
    "paired relativistic softplus": lambda f, r: F.softplus(r - f).mean(),
    "average of reals only": lambda f, r: bce(f - REAL.mean(), torch.ones_like(f)),
    "reals besides": lambda f, r: -f.mean() + (r.mean() - 1) ** 2,
    "several terms": lambda f, r: F.softplus(-f).mean() + 0.1 * (f**2).mean() - f.sum() / len(f),
    "a list of terms": lambda f, r: torch.stack([-f.mean(), (f**2).mean()]).sum(),
    "cat of terms": lambda f, r: torch.cat([f, f**2], 1).mean(),
    "cat with reals": lambda f, r: torch.cat([F.softplus(-f), F.softplus(r)]).sum(),
    "views": lambda f, r: F.relu(1 - f.view(-1).unsqueeze(0).T.squeeze(1)).mean(),
    "two classes": lambda f, r: F.cross_entropy(
        torch.cat([f, 0 * f], 1), torch.zeros(len(f)).long()
    ),
    "permuted": lambda f, r: F.softplus(-f[torch.arange(len(f)).flip(0)]).mean(),
    "halves": lambda f, r: sum(F.softplus(-part).sum() for part in f.chunk(2)),
    "rows one by one": lambda f, r: sum(F.softplus(-one).sum() for one in f.unbind()),
    "own rows": lambda f, r: (f * f / (1 + f.abs())).mean(),
    "clamped": lambda f, r: -torch.where(f < 1, f, 1.0).clamp(-1, 1).mean(),
    "softmax over classes": lambda f, r: -torch.softmax(torch.cat([f, r], 1), 1)[:, 0].mean(),
    "logsumexp over classes": lambda f, r: torch.logsumexp(torch.cat([f, r], 1), 1).mean(),
    "norm of a row": lambda f, r: torch.cat([f, r], 1).norm(dim=1).sum(),
    "flip, roll and sort of classes": lambda f, r: (
        torch.cat([f, r], 1).flip(1).roll(1, 1).sort(1)[0][:, 1].sum()
    ),
    "a table with weights": lambda f, r: F.softplus(REAL.T - f).mean(1).sum(),
    "gathered classes": lambda f, r: (
        torch.cat([f, r], 1).gather(1, torch.zeros(len(f), 1).long()).sum()
    ),
    "masked": lambda f, r: F.softplus(-f).masked_fill(f > 0, 0).sum(),
}
COUPLED = {
    "relativistic average": lambda f, r: (
        bce(r - f.mean(), torch.zeros_like(r)) + bce(f - r.mean(), torch.ones_like(f))
    ),
    "relativistic average, LSGAN": lambda f, r: (
        ((r - f.mean() + 1) ** 2).mean() + ((f - r.mean() - 1) ** 2).mean()
    ),
    "relativistic average, hinge": lambda f, r: (
        F.relu(1 + (r - f.mean())).mean() + F.relu(1 - (f - r.mean())).mean()
    ),
    "relativistic average, mse_loss": lambda f, r: F.mse_loss(r - f.mean(0), -torch.ones_like(r)),
    "averages": lambda f, r: F.softplus(r.mean() - f.mean()),
    "softmax-GAN": lambda f, r: f.mean() / 2 + r.mean() / 2 + lse(-f, -r),
    "logsumexp": lambda f, r: torch.logsumexp(f, 0).sum(),
    "softmax over the batch": lambda f, r: -torch.softmax(f, 0)[0].sum(),
    "log_softmax over the batch": lambda f, r: (F.log_softmax(f.T, 1) * r.T).sum(),
    "cross entropy over the batch": lambda f, r: F.cross_entropy(f.T, torch.zeros(1).long()),
    "mean plus std": lambda f, r: -f.mean() + f.std(),
    "var": lambda f, r: f.var(0).sum(),
    "squared mean": lambda f, r: f.mean() ** 2,
    "absolute difference": lambda f, r: (f.mean() - r.mean()).abs(),
    "norm": lambda f, r: f.norm(),
    "centred": lambda f, r: ((f - f.mean()) ** 2).mean(),
    "normalised": lambda f, r: (f / f.sum()).exp().mean(),
    "divided by its mean": lambda f, r: f.sum() / f.exp().mean(),
    "product of means": lambda f, r: f.mean() * (f**2).mean(),
    "max": lambda f, r: f.max(),
    "max over the batch": lambda f, r: f.max(0)[0].sum(),
    "smallest": lambda f, r: f.amin(),
    "median": lambda f, r: f.median(),
    "the best two": lambda f, r: f.topk(2, 0)[0].sum(),
    "sorted": lambda f, r: (f.sort(0)[0] * torch.arange(len(f)).unsqueeze(1)).sum(),
    "cumulative": lambda f, r: f.cumsum(0).exp().sum(),
    "product": lambda f, r: f.prod(),
    "all pairs": lambda f, r: F.softplus(f - f.T).mean(),
    "neighbours": lambda f, r: F.softplus(f - f.roll(1, 0)).mean(),
    "one against the next": lambda f, r: F.softplus(f[1:] - f[:-1]).mean(),
    "weighted mean": lambda f, r: (torch.sigmoid(r).T @ f).exp().sum(),
    "groups": lambda f, r: F.softplus(-f.view(-1, 2).mean(1)).mean(),
    "batch norm": lambda f, r: F.softplus(-F.batch_norm(f, None, None, training=True)).mean(),
    "scaled afterwards": lambda f, r: 0.25 * torch.logsumexp(-f, 0).sum().float() * 65536,
    "beside one that does not": lambda f, r: F.softplus(-f).mean() + 0.1 * f.std(),
}


def of(loss, shape=(BATCH, 1)):
    """What is found of a loss of scores of that shape."""
    scores = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    source = scores.clone()
    value = loss(source, REAL)  # which keeps its node alive
    return coupling([value.grad_fn], {source.grad_fn: 1})


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_losses_that_add_up_over_samples(name):
    assert of(PER_SAMPLE[name]) is None


@pytest.mark.parametrize("name", COUPLED)
def test_losses_that_couple_rows(name):
    found = of(COUPLED[name])
    assert found is not None
    assert "Backward" in found


@pytest.mark.parametrize("name", [*PER_SAMPLE, *COUPLED])
def test_it_is_so(name):
    """The gradient of the kept rows differs from the loss's of the kept scores for coupled ones."""
    loss = (PER_SAMPLE | COUPLED)[name]
    kept = torch.tensor([3, 4, 5, 6])
    scores = SCORES.clone().requires_grad_()
    (masked,) = torch.autograd.grad(loss(scores, REAL).sum(), scores)
    fewer = scores.detach()[kept].requires_grad_()
    (literal,) = torch.autograd.grad(loss(fewer, REAL[kept]).sum(), fewer)
    errors = [float((literal - weight * masked[kept]).norm()) for weight in (2.0, 1.0)]
    same = min(errors) < 1e-9 * float(literal.norm())
    assert same == (name in PER_SAMPLE or name == "absolute difference")  # whose sign stays here


PATCHES = (BATCH, 1, 3, 3)


@pytest.mark.parametrize(
    ("loss", "couples"),
    [
        (lambda s: F.softplus(-s.mean((1, 2, 3))).mean(), False),
        (lambda s: F.softplus(-s.view(BATCH, -1).mean(1)).mean(), False),
        (lambda s: F.softplus(-s.flatten().view(BATCH, 9).mean(1)).mean(), False),
        (lambda s: F.softplus(-F.adaptive_avg_pool2d(s, 1)).mean(), False),
        (lambda s: F.mse_loss(s, torch.ones_like(s)), False),
        (lambda s: s.permute(0, 2, 3, 1).reshape(BATCH, 9).std(1).mean(), False),
        (lambda s: F.softplus(-s.mean(0)).mean(), True),
        (lambda s: F.softplus(-s.transpose(0, 1).flatten(1).mean(1)).mean(), True),
        (lambda s: F.softplus(-s.view(BATCH // 2, -1).mean(1)).mean(), True),
        (lambda s: s.std(), True),
    ],
)
def test_patch_maps(loss, couples):
    assert (of(lambda s, r: loss(s), PATCHES) is not None) == couples


def test_scores_without_a_second_dimension():
    assert of(lambda s, r: F.softplus(-s).mean(), (BATCH,)) is None
    assert of(lambda s, r: F.softplus(-s.mean()), (BATCH,)) == "SoftplusBackward0"
    assert of(lambda s, r: torch.logsumexp(s, -1), (BATCH,)) == "LogsumexpBackward0"


def test_several_critics():
    a, b = (torch.randn(BATCH, 1, requires_grad=True).clone() for _ in range(2))
    sources = {a.grad_fn: 1, b.grad_fn: 1}

    def found(loss):
        return coupling([loss.grad_fn], sources)

    assert found(F.softplus(-a).mean() + ((b - 1) ** 2).mean()) is None
    assert found(F.softplus(-(a + b) / 2).mean()) is None
    assert found(F.softplus(-torch.cat([a, b])).mean()) is None
    assert found(F.softplus(-a).mean() + b.mean().exp()) == "ExpBackward0"
    assert found(a.mean() * b.mean()) == "MulBackward0"


def test_several_losses_at_once():
    s = torch.randn(BATCH, 1, requires_grad=True).clone()
    assert coupling([s.mean().grad_fn, s.sum().grad_fn, None], {s.grad_fn: 1}) is None
    assert coupling([s.mean().grad_fn, s.std().grad_fn], {s.grad_fn: 1}) == "StdBackward0"


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    "loss",
    [
        lambda f, r: Squared.apply(f.mean()),
        lambda f, r: F.softplus(Squared.apply(f).mean()),
        lambda f, r: checkpoint(lambda x: x.std(), f, use_reentrant=True),
        lambda f, r: F.softplus(f.diagonal().mean()),
        lambda f, r: F.softplus(f[0]).sum() * F.softplus(f[1]).sum(),
    ],
)
def test_what_is_not_known_says_nothing(loss):
    assert of(loss) is None


def test_what_is_not_known_hides_nothing_else():
    assert of(lambda f, r: Squared.apply(f).mean() + f.std()) == "StdBackward0"


def test_in_place_operations():
    def loss(f, r):
        x = f * 1
        x.sub_(x.mean()).square_()
        return x.mean()

    assert of(loss) is not None
    assert of(lambda f, r: (f * 1).add_(1).neg_().exp_().mean()) is None


# --- what a gate masks ----------------------------------------------------------------------------


class WithFeatures(Critic):
    def forward(self, x):
        h = self.body(x)
        return self.score(h), h


def matching(output):
    """Feature matching, which couples the rows of the features, not of the scores."""
    scores, features = output
    return F.softplus(-scores).mean() + (features.mean(0) - 1).square().sum()


@pytest.mark.parametrize("k", [BATCH, 4])
@pytest.mark.parametrize(("companions", "couples"), [("auto", False), ("follow", True)])
def test_other_outputs_count_where_they_follow_the_rows(k, companions, couples):
    topk = make_topk(k, companions=companions, direction="high")
    G, D = make_generator(), WithFeatures("plain")
    with attach(D, topk):
        loss = matching(D(G(noise())))
    if k < BATCH:  # before, only the scores pass a gate
        assert (coupling_of_gates([loss.grad_fn])[0] is not None) == couples
    loss = matching(topk(D(G(noise()))))
    assert (coupling_of_gates([loss.grad_fn])[0] is not None) == couples


def test_gates_of_both_kinds():
    topk, G, D = make_topk(4), make_generator(), Critic()
    for loss, couples in ((lambda s: -s.mean(), False), (lambda s: s.std() - s.mean(), True)):
        with attach(D, topk):
            shielded = loss(D(G(noise())))
        line = loss(topk(D(G(noise()))))
        for root in (shielded, line):
            found, gates = coupling_of_gates([root.grad_fn])
            assert (found is not None) == couples
            assert [ranking_of(gate).shape for gate in gates] == [(BATCH,)]


def test_the_literal_form_couples_nothing():
    topk, G, D = TopK(direction="high"), make_generator(), Critic()
    loss = topk.gather(D(G(noise()))).std()
    found, gates = coupling_of_gates([loss.grad_fn])
    assert found is None
    assert len(gates) == 1


def test_compiled_losses_say_nothing():
    D, G = nn.Linear(3, 1), nn.Linear(2, 3)
    with attach(D, TopK()):
        scores = D(G(torch.randn(BATCH, 2)))
    loss = torch.compile(lambda s: s.std(), backend="aot_eager")(scores)
    assert coupling_of_gates([loss.grad_fn])[0] is None
