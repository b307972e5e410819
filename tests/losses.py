"""Tiny networks, the generator losses of the literature, and top-k in its most naive form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from topk_plugin import TopK

torch.set_num_threads(1)  # the nets are tiny, and one thread makes every run the same to the bit

BATCH, LATENT, WIDTH = 8, 4, 6
KS = [BATCH, 6, 4, 1]
TOLERANCE = 1e-12


class Loss(NamedTuple):
    """A generator loss as a loop would write it, and what the literal top-k needs to know."""

    of: Callable[[Tensor], Tensor]  # scores of any shape to a scalar
    largest: bool = True  # high scores are the realistic ones
    tail: Callable[[], nn.Module] = nn.Identity  # what the critic ends in
    reduction: str = "mean"

    def direction(self, told: str) -> str:
        """The setting, where the direction is ``told`` by the "vote" or by a "setting"."""
        return "auto" if told == "vote" else "high" if self.largest else "low"


TOLD = ["vote", "setting"]
"""While generator steps vote, scores are sorted in the backward, else in the forward."""

LOSSES = {
    "hinge": Loss(lambda s: -s.mean()),
    "non-saturating": Loss(lambda s: F.softplus(-s).mean()),
    "saturating": Loss(lambda s: -F.softplus(s).mean()),
    "lsgan": Loss(lambda s: ((s - 1) ** 2).mean()),
    "bce": Loss(lambda s: F.binary_cross_entropy(s, torch.ones_like(s)), tail=nn.Sigmoid),
    "wasserstein": Loss(lambda s: -s.mean(0).view(1).squeeze()),
    "wasserstein-low": Loss(lambda s: s.mean(), largest=False),
    "energy": Loss(lambda s: s.mean(), largest=False, tail=nn.Softplus),
    "sum": Loss(lambda s: F.softplus(-s).sum(), reduction="sum"),
}

NORMS: dict[str, Callable[[], nn.Module]] = {
    "plain": nn.Identity,
    "spectral": nn.Identity,
    "group": lambda: nn.GroupNorm(4, 16),
    "layer": lambda: nn.LayerNorm(16),
    "batch": lambda: nn.BatchNorm1d(16),
}


def make_generator(batch_norm: bool = True) -> nn.Module:
    """(B, LATENT) to (B, WIDTH)."""
    norm = nn.BatchNorm1d(10) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Linear(LATENT, 10), norm, nn.ReLU(), nn.Linear(10, WIDTH), nn.Tanh()
    ).double()


class Critic(nn.Module):
    """(B, WIDTH) to (B, 1)."""

    def __init__(self, norm: str = "plain", tail: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        linear = spectral_norm if norm == "spectral" else lambda layer: layer
        self.body = nn.Sequential(linear(nn.Linear(WIDTH, 16)), NORMS[norm](), nn.LeakyReLU(0.2))
        self.score = nn.Sequential(linear(nn.Linear(16, 1)), tail())
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.body(x))


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


def noise(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, LATENT, dtype=torch.float64)


def reals(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, WIDTH, dtype=torch.float64)


def make_topk(k: int, batch: int = BATCH, **settings: object) -> TopK:
    """A TopK that keeps ``k`` of ``batch`` rows from now on."""
    topk = TopK(gamma=k / batch, nu=k / batch, **settings)
    topk.end_epoch()
    assert topk.k(batch) == (k if topk.config.enabled else batch)
    return topk


def literal(loss: Loss, scores: Tensor, k: int) -> Tensor:
    """The paper's snippet (section 3.3)."""
    return loss.of(scores.flatten().topk(k, largest=loss.largest).values)


def best_rows(scores: Iterable[float], k: int, largest: bool = True) -> list[int]:
    """The k rows to keep, by Python's own stable sort; NaN after everything else."""
    scores = list(scores)
    sign = -1 if largest else 1
    order = sorted(
        range(len(scores)),
        key=lambda i: (scores[i] != scores[i], 0.0 if scores[i] != scores[i] else sign * scores[i]),
    )
    return sorted(order[:k])


def gradients(*nets: nn.Module) -> list[Tensor]:
    """Copies of all parameters' gradients; zeros where there is none."""
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for net in nets
        for p in net.parameters()
    ]


def clear(*nets: nn.Module) -> None:
    for net in nets:
        net.zero_grad(set_to_none=True)


def backward(loss: Tensor, *nets: nn.Module) -> list[list[Tensor]]:
    """The gradients of each net by ``loss`` alone."""
    clear(*nets)
    loss.backward()
    return [gradients(net) for net in nets]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal to the last bit."""
    assert len(found) == len(expected)
    assert any(t.any() for t in expected), "nothing to compare"
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {i} differs by {(a - b).abs().max():.1e}"


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference relative to the largest expected number, over all tensors."""
    a, b = (torch.cat([t.flatten() for t in ts]) for ts in (found, expected))
    assert b.any(), "nothing to compare"
    return float((a - b).abs().max() / b.abs().max())
