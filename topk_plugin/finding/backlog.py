"""Steps of the generator before its critics were found: they are counted once these are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch.optim import Optimizer

from topk_plugin.core.ledger import Arrival
from topk_plugin.finding.candidate import Candidate, Settled


class Step(NamedTuple):
    """A step of the generator."""

    optimizers: list[Optimizer]  # of one backward: several where parts of it have their own
    through: dict[Candidate, Settled]
    below: bool  # k < B then

    @property
    def tasks(self) -> set[int]:
        """Its backward passes."""
        return {call.task for settled in self.through.values() for call in settled.calls}

    def calls_of(self, candidates: Iterable[Candidate]) -> list[Arrival]:
        """Those of ``candidates`` that it went through."""
        return [call for c in candidates if c in self.through for call in self.through[c].calls]


class Backlog(list[Step]):
    """In their order."""

    def add(self, optimizer: Optimizer, through: dict[Candidate, Settled]) -> None:
        """A step of ``optimizer``, perhaps after another one's of the same backward."""
        came = [call for settled in through.values() for call in settled.calls]
        below = any(call.training.progress.fraction < 1 for call in came)
        step = Step([optimizer], through, below)
        if self and step.tasks & self[-1].tasks:
            before = self.pop()
            optimizers = [*before.optimizers, optimizer]
            step = Step(optimizers, before.through | through, before.below or below)
        self.append(step)
