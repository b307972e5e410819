"""Optimizer steps as the measure of a pass, where a loop keeps the batches of a DataLoader."""

from __future__ import annotations

import math
import weakref
from collections.abc import Set
from typing import NamedTuple

from torch.optim import Optimizer

from topk_plugin.streams import count


class Length(NamedTuple):
    """How long a pass is, in optimizer steps."""

    others: int  # of that optimizer, of those not the generator's, which steps most often
    generator: int  # generator steps
    of_batches: bool = False  # it is as many steps of either kind as there are batches

    def scaled(self, factor: float) -> Length:
        """For so many times the batches."""
        return Length(round(self.others * factor), round(self.generator * factor))


class Reached(NamedTuple):
    """Where a pass is that is measured in steps."""

    last: bool  # the latest step is its last, or later
    over: bool  # it is certain that no more steps of it follow
    begun: bool  # the next one has begun, by a step of the critic's
    words: str  # how it was measured


class StepCount:
    """Optimizer steps of one training since one of its epochs ended."""

    def __init__(self) -> None:
        self.generator = 0
        self.critic_first = False  # in its rounds, the critic steps before the generator
        self._others: Steps = weakref.WeakKeyDictionary()

    def clear(self) -> None:
        """An epoch ended."""
        self.generator = 0
        self._others.clear()

    def add(self, between: Steps, mine: Set[Optimizer]) -> None:
        """A generator step was counted.

        Args:
            between: steps of any optimizer since the generator step before.
            mine: the optimizers that step the generator.
        """
        if not self.generator:
            self.critic_first = any(one not in mine for one in between)
        self.generator += 1
        for one, steps in between.items():
            self._others[one] = self._others.get(one, 0) + steps

    def reached(self, length: Length, between: Steps, mine: Set[Optimizer]) -> Reached:
        """How much of a pass was done; see :meth:`add`."""
        done = self.total(between, mine)
        # without a critic whose steps could be seen, the generator's measure the pass
        by_critic = bool(length.others and (done.others or not length.of_batches))
        steps, whole = (
            (done.others, length.others) if by_critic else (done.generator, length.generator)
        )
        # where the critic goes first, only its next step tells that the generator's are done
        begun = by_critic and self.critic_first and steps > whole
        over = begun if by_critic and self.critic_first else steps >= whole
        if length.of_batches:
            step = "critic step" if by_critic else "generator step"
            words = f"{count(whole, step)} a pass, one a batch"
        else:
            words = f"{count(length.generator, 'generator step')} a pass, as in the first one"
        return Reached(steps >= whole, over, begun, words)

    def total(self, between: Steps, mine: Set[Optimizer]) -> Length:
        """All of them; see :meth:`add`."""
        steps = [
            self._others.get(one, 0) + between.get(one, 0)
            for one in {*self._others, *between}
            if one not in mine
        ]
        return Length(max(steps, default=0), self.generator)


Steps = weakref.WeakKeyDictionary[Optimizer, int]


def length_of_kept(batches: int, samples: int, rows: int) -> Length:
    """Of a pass over batches that were all fetched before the training.

    Args:
        batches, samples: that were fetched.
        rows: of a batch of the generator's; 0 if they are not known. Where they are not those of
            the DataLoader's batches, the loop makes batches of its own.
    """
    if rows and rows * batches != samples:
        batches = max(1, math.ceil(samples / rows))
    return Length(batches, batches, of_batches=True)
