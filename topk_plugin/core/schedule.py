"""How many rows of a batch are kept: k shrinks as epochs end (paper, section 3.2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

EPOCHS_AHEAD = 100_000
"""Epochs in which k has to fall for the first time."""


def first_fall(fraction_at: Callable[[int], float], batch: int) -> tuple[int, int] | None:
    """The epoch after which k < B for the first time, and k then; None: k stays B.

    Args:
        fraction_at: of a batch, what is kept after so many ended epochs.
        batch: B.
    """
    for epoch in range(1, EPOCHS_AHEAD if batch > 1 else 1):
        k = k_of(fraction_at(epoch), batch)
        if k < batch:
            return epoch, k
    return None


def k_of(fraction: float, batch: int) -> int:
    """Rows kept of a batch of `batch` rows, at least one.

    The paper floors the decayed float. The 1e-9 keeps a product that is an integer on paper from
    losing a row to rounding: 0.7**2 * 100 is 48.99999999999999 in float64.
    """
    return max(1, math.floor(fraction * batch + 1e-9))


@dataclass(frozen=True)
class KSchedule:
    """k as a pure function of the number of ended epochs, so that resuming needs that number alone.

    gamma: factor by which k shrinks at the end of an epoch, in (0, 1].
    nu: smallest fraction of the batch, in (0, 1].
    restore: (T0, T1) epochs, 1 <= T0 < T1: from T0 on the fraction goes back to 1 in equal steps,
        which it reaches at T1; (): it never does, as in the paper.

    The paper decays k itself, k <- max(gamma * k, nu * B); after t epochs that is the closed form
    max(gamma**t, nu) * B (section 3.2).
    """

    gamma: float
    nu: float
    restore: tuple[int, ...] = ()

    def fraction(self, epoch: int) -> float:
        """Fraction of the batch that is kept after `epoch` >= 0 ended epochs."""
        if not self.restore or epoch <= self.restore[0]:
            return max(self.gamma**epoch, self.nu)
        begin, end = self.restore
        if epoch >= end:
            return 1.0
        lowest = max(self.gamma**begin, self.nu)
        return lowest + (1.0 - lowest) * (epoch - begin) / (end - begin)

    def k(self, batch: int, epoch: int) -> int:
        """Rows kept of a batch of `batch` rows after `epoch` >= 0 ended epochs."""
        return k_of(self.fraction(epoch), batch)
