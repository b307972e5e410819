"""What the gates of one TopK counted, summed on the device and read only when somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topk_plugin.core.choice import CALLS, KEPT, NONFINITE, ROWS, TALLY_SIZE, THRESHOLD, Choice


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


class Counts:
    """Tallies, each (TALLY_SIZE,) float64; see :mod:`topk_plugin.core.choice`."""

    def __init__(self) -> None:
        self.largest = 0  # rows of a critic call; 0 where no Python saw one
        self.inbox = torch.zeros(TALLY_SIZE, dtype=torch.float64)  # line A, not yet counted
        self._totals = torch.zeros(TALLY_SIZE, dtype=torch.float64)
        self._last = torch.zeros(TALLY_SIZE, dtype=torch.float64)

    def take(self) -> Tensor:
        """What arrived at the inbox, which is empty then."""
        tally = self.inbox.clone()
        self.inbox.zero_()
        return tally

    def saw(self, choices: Sequence[Choice]) -> None:
        """What was chosen in a generator step."""
        self.largest = max([self.largest, *(len(choice.scores) for choice in choices)])

    def add(self, tally: Tensor) -> None:
        """One generator step."""
        self._totals += tally
        self._last.copy_(tally)

    def report(self, steps: int, epochs: int, fraction: float, direction: str) -> Report:
        """All of it (the device is waited for)."""
        totals = (self._totals + self.inbox).tolist()  # line A may have seen no optimizer yet
        rows, kept, nonfinite = (int(totals[i]) for i in (ROWS, KEPT, NONFINITE))
        last = self._last.tolist()
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
        )

    def to(self, device: torch.device | str) -> None:
        """Move the tallies."""
        for name in ("inbox", "_totals", "_last"):
            setattr(self, name, getattr(self, name).to(device))
