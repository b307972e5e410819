"""A generator and a critic with an optimizer each, and their steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from losses import Critic, make_generator, make_topk, noise, reals

from topk_plugin import TopK

SGD = torch.optim.SGD


class Setup:
    """A generator, a critic that is never frozen, an optimizer for each, and a TopK."""

    def __init__(self, topk: TopK | None = None, lr: float = 0.01) -> None:
        self.G, self.D = make_generator(), Critic()
        self.opt_G, self.opt_D = SGD(self.G.parameters(), lr), SGD(self.D.parameters(), lr)
        self.topk = topk or make_topk(4)

    def generator_backward(self) -> None:
        F.softplus(-self.D(self.G(noise()))).mean().backward()

    def critic_backward(self) -> None:
        """With fakes that are not detached, as in many loops."""
        (
            F.softplus(-self.D(reals())).mean() + F.softplus(self.D(self.G(noise()))).mean()
        ).backward()

    def generator_step(self) -> None:
        self.generator_backward()
        self.opt_G.step()

    def critic_step(self) -> None:
        self.critic_backward()
        self.opt_D.step()
