"""A GAN that trains in a moment, and the epoch that each of its generator steps was in."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, Sampler

from topk_plugin import TopK, attach
from topk_plugin.loop.epochs import EpochTracker

DATA = torch.randn(32, 2) + 1


def batches_of(rows: int = 8, **options: Any) -> DataLoader:
    """Four batches of eight, if not told otherwise."""
    return DataLoader(DATA, **{"batch_size": rows, **options})


class Endless(Sampler):
    """Indices without end."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(len(DATA))


class Gan:
    """Two networks, an optimizer of each, and steps of either."""

    def __init__(self, topk: TopK | None = None, **settings: Any) -> None:
        self.topk = topk or TopK(**{"gamma": 0.5, "nu": 0.1, "direction": "high", **settings})
        self.critic, self.generator = nn.Linear(2, 1), nn.Linear(3, 2)
        self.of_critic = torch.optim.SGD(self.critic.parameters(), 0.01)
        self.of_generator = torch.optim.SGD(self.generator.parameters(), 0.01)
        self.epochs: list[int] = []  # in which the generator steps were
        self.kept: list[int] = []  # rows, of eight
        if topk is None:
            self.topk.observers.append(self._counted)

    def _counted(self, step: Any) -> None:
        self.epochs.append(step.epoch)
        self.kept.append(int(step.calls[0].kept.sum()))

    def train_critic(self, x: torch.Tensor) -> None:
        self.of_critic.zero_grad()
        fake = self.generator(torch.randn(len(x), 3)).detach()
        (softplus(-self.critic(x)).mean() + softplus(self.critic(fake)).mean()).backward()
        self.of_critic.step()

    def train_generator(self, rows: int = 8) -> None:
        self.of_generator.zero_grad()
        softplus(-self.critic(self.generator(torch.randn(rows, 3)))).mean().backward()
        self.of_generator.step()

    def warm_up(self, x: torch.Tensor) -> None:
        """The generator without the critic."""
        self.of_generator.zero_grad()
        (self.generator(torch.randn(len(x), 3)) - x).abs().mean().backward()
        self.of_generator.step()

    def train(self, x: torch.Tensor) -> None:
        self.train_critic(x)
        self.train_generator(len(x))

    @contextlib.contextmanager
    def watched(self, *critics: nn.Module) -> Iterator[EpochTracker]:
        """Attached, with other ``critics``, as `topk run` does: every DataLoader may feed."""
        tracker = EpochTracker(self.topk)
        with contextlib.ExitStack() as attached:
            for critic in (self.critic, *critics):
                attached.enter_context(attach(critic, self.topk))
            tracker.start()
            try:
                yield tracker
            finally:
                tracker.stop()
        tracker.check()

    @property
    def ended(self) -> int:
        return self.topk.training.progress.ended

    @property
    def counted(self) -> str:
        return self.topk.training.progress.told_by


def passes(*steps: int) -> list[int]:
    """The epoch of each of so many generator steps, pass after pass."""
    return [epoch for epoch, n in enumerate(steps) for _ in range(n)]
