"""What the gates of one TopK counted, summed on the device and read only when somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from topk_plugin.core.choice import (
    BALLOT,
    CALLS,
    KEPT,
    NONFINITE,
    ROWS,
    TALLY_SIZE,
    THRESHOLD,
    Choice,
)
from topk_plugin.core.sorted_choice import AnyChoice, SortedChoice, tally_of


@dataclass(frozen=True)
class Report:
    """What happened so far (see TopK.report())."""

    steps: int  # generator steps gated, those with k = B included
    epochs: int  # epochs ended
    fraction: float  # of a batch that is kept now
    rows: int  # rows that generator steps sent through the gate
    dropped: int  # rows of them that were dropped
    nonfinite: int  # scores that were NaN or infinite
    direction: str  # "high", "low", or "undecided"
    threshold: float | None  # score of the worst row kept in the last generator step
    last_batch: int  # rows of a critic call in the last generator step (mean, if they differ)
    last_k: int  # rows of them that were kept (mean, if they differ)
    spared: int  # generator steps in which a critic formed no gradient, as was learned


FOLD = 64
"""Calls whose tally is taken at once, where the host knows what they kept."""


class StepTally:
    """What one generator step counted, added up when it is read.

    Args:
        device: (TALLY_SIZE,) of calls of which the device said what is kept.
        choices: of the other calls; one of the two there is.
    """

    def __init__(self, device: Tensor | None, choices: Sequence[SortedChoice]) -> None:
        self.device, self.choices = device, choices

    @property
    def ballot(self) -> Tensor:
        """0-d float64, without all the rest of it."""
        cast = [one.ballot for one in self.choices if one.ballot is not None]
        if self.device is not None:
            cast.append(self.device[BALLOT])
        if not cast:
            return torch.zeros((), dtype=torch.float64)
        total = cast[0]
        for one in cast[1:]:
            total = one + total.to(one.device)
        return total

    @cached_property
    def value(self) -> Tensor:
        """(TALLY_SIZE,) float64."""
        if self.device is None:
            return tally_of(self.choices)
        return self.device + tally_of(self.choices).to(self.device) if self.choices else self.device


class Counts:
    """Tallies, each (TALLY_SIZE,) float64; see :mod:`topk_plugin.core.choice`."""

    def __init__(self) -> None:
        self.spared = 0  # generator steps in which a critic was
        self._spared_last: object = None
        self.ungated = 0  # generator steps at k < B before their critic was found
        self.largest = 0  # rows of which a k is kept; 0 where no Python saw one
        # line A, not yet counted: what the device counted, whether it may have, and the others
        self.inbox = torch.zeros(TALLY_SIZE, dtype=torch.float64)
        self.listening = False
        self._waiting: list[SortedChoice] = []
        self._totals = torch.zeros(TALLY_SIZE, dtype=torch.float64)
        self._recent: list[SortedChoice] = []  # of counted steps, not yet in the totals
        self._last = StepTally(torch.zeros(TALLY_SIZE, dtype=torch.float64), [])

    def voted(self, choice: SortedChoice) -> None:
        """A backward went through a gate of line A; the next one is to know of its ballot."""
        if choice.ballot is not None:
            self.inbox[BALLOT] += choice.ballot.to(self.inbox.device)
            self.listening, choice.ballot = True, None

    def arrived(self, choice: SortedChoice) -> None:
        """A backward went through a gate of line A, which does not write to the inbox itself."""
        self._waiting.append(choice)
        if len(self._waiting) > FOLD:  # no optimizer says that a step ended
            self._put(self._waiting)

    def take(self, choices: Sequence[AnyChoice]) -> StepTally:
        """One step: what arrived of line A, of which nothing is left, and ``choices``."""
        of_host = [one for one in choices if isinstance(one, SortedChoice)]
        of_device = [one for one in choices if isinstance(one, Choice)]
        waiting, self._waiting = self._waiting, []
        tally = None
        # a replayed graph writes to the inbox and runs no Python
        if self.listening or of_device or not (of_host or waiting):
            tally, self.listening = self.inbox.clone(), False
            self.inbox.zero_()
            for one in of_device:
                tally += one.tally.to(tally.device)
        return StepTally(tally, [*waiting, *of_host])

    def saw(self, choices: Sequence[AnyChoice], batches: int = 1) -> None:
        """What was chosen in a generator step.

        Args:
            batches: that compete with each other.
        """
        for choice in choices:
            self.largest = max(self.largest, choice.batch * batches)

    def spare(self, step: object) -> None:
        """A critic was spared in a generator ``step``; told of each of its calls."""
        if step != self._spared_last:
            self.spared, self._spared_last = self.spared + 1, step

    def add(self, tally: StepTally) -> None:
        """One generator step."""
        if tally.device is not None:
            self._totals += tally.device
        self._recent += tally.choices
        if len(self._recent) >= FOLD:
            self._fold()
        self._last = tally

    def _put(self, choices: list[SortedChoice]) -> None:
        """To the inbox."""
        self.inbox += tally_of(choices).to(self.inbox.device)
        self.listening = True
        choices.clear()

    def _fold(self) -> None:
        self._totals += tally_of(self._recent).to(self._totals.device)
        self._recent.clear()

    def report(self, steps: int, epochs: int, fraction: float, direction: str) -> Report:
        """All of it (the device is waited for)."""
        if self._recent:
            self._fold()
        if self._waiting:  # line A may have seen no optimizer yet
            self._put(self._waiting)
        totals = (self._totals + self.inbox).tolist()
        rows, kept, nonfinite = (int(totals[i]) for i in (ROWS, KEPT, NONFINITE))
        last = self._last.value.tolist()
        calls = max(1, int(last[CALLS]))
        return Report(
            steps=steps,
            epochs=epochs,
            fraction=fraction,
            rows=rows,
            dropped=rows - kept,
            nonfinite=nonfinite,
            direction=direction,
            threshold=last[THRESHOLD] / calls if steps else None,
            last_batch=round(last[ROWS] / calls),
            last_k=round(last[KEPT] / calls),
            spared=self.spared,
        )

    def to(self, device: torch.device | str) -> None:
        """Move the tallies."""
        for name in ("inbox", "_totals"):
            setattr(self, name, getattr(self, name).to(device))
