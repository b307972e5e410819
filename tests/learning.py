"""Loops around a critic whose rows act on each other, with or without places that are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from losses import Critic, assert_same, make_generator, make_topk, noise, reals
from torch import Tensor, nn

from topk_plugin import attach
from topk_plugin.core.counts import Report


class Loop:
    """Two networks, an optimizer of each, and the usual steps.

    Args:
        settings: of the TopK, which keeps half of the batch from the beginning.
    """

    def __init__(self, critic: Callable[[], nn.Module] = lambda: Critic("batch"), **settings: Any):
        torch.manual_seed(0)
        self.G, self.D = make_generator(), critic()
        self.opt_G = torch.optim.Adam(self.G.parameters(), 1e-2)
        self.opt_D = torch.optim.Adam(self.D.parameters(), 1e-2)
        self.topk = make_topk(4, **{"direction": "high", **settings})

    def loss_D(self, fake: Tensor | None = None) -> Tensor:
        fake = self.G(noise()).detach() if fake is None else fake
        return F.softplus(-self.D(reals())).mean() + F.softplus(self.D(fake)).mean()

    def loss_G(self) -> Tensor:
        return F.softplus(-self.D(self.G(noise()))).mean()

    def critic_step(self) -> None:
        self.opt_D.zero_grad()
        self.loss_D().backward()
        self.opt_D.step()

    def generator_step(self) -> None:
        self.opt_G.zero_grad()
        self.loss_G().backward()
        self.opt_G.step()

    def step(self, n: int) -> None:
        """Step ``n`` of the loop, from 0."""
        self.critic_step()
        self.generator_step()

    def run(self, steps: int, first: int = 0) -> None:
        for n in range(first, steps):
            self.step(n)

    @property
    def tensors(self) -> list[Tensor]:
        """All that a training leaves, of networks and optimizers."""
        states = [net.state_dict().values() for net in (self.G, self.D)]
        states += [one.values() for o in (self.opt_G, self.opt_D) for one in o.state.values()]
        return [t.detach().clone() for state in states for t in state if isinstance(t, Tensor)]


def played(kind: type[Loop], steps: int, **settings: Any) -> tuple[list[Tensor], Report]:
    """What a loop ends with, and what was counted."""
    loop = kind(**settings)
    with attach(loop.D, loop.topk):
        loop.run(steps)
    return loop.tensors, loop.topk.report()


def spared(kind: type[Loop], steps: int, **settings: Any) -> int:
    """Steps that spared the critic, after a check that not a bit depends on it."""
    found, report = played(kind, steps, **settings)
    expected, plain = played(kind, steps, spare=False, **settings)
    assert_same(found, expected)
    assert plain.spared == 0
    assert plain.dropped == report.dropped
    assert report.dropped > 0
    return report.spared
