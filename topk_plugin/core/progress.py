"""How far training is, and what fraction of a batch is kept there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from topk_plugin.core.choice import gate_numbers, keep_fraction
from topk_plugin.core.schedule import first_fall


class EpochCount:
    """Epochs and generator steps of one TopK; the only writer of these numbers.

    Args:
        fraction_at: of a batch, what is kept after so many (epochs, generator steps), in (0, 1].
        epoch: epochs that had ended before.
    """

    def __init__(self, fraction_at: Callable[[int, int], float], epoch: int) -> None:
        self._fraction_at = fraction_at
        self.epoch = self.first_epoch = epoch
        self.steps = self.first_step = 0  # first_: where this process began
        self.pass_complete = False  # the epoch's last batch was delivered
        self.counted = False  # an upstream counter tells the epochs
        self.told_by = "not at all"  # who said when an epoch ended, in words
        self.caught_up = 0  # epochs that ended before it was known what trains here
        self._held: float | None = None  # fraction that is kept whatever the epoch
        self.fraction = fraction_at(epoch, 0)
        self.numbers = gate_numbers(self.fraction)

    @property
    def ended(self) -> int:
        """Epochs ended; one whose last batch was delivered has."""
        return self.epoch + self.pass_complete

    @property
    def begun(self) -> bool:
        """A generator step was counted in this process."""
        return self.steps != self.first_step

    def end_epoch(self, told_by: str) -> None:
        """One pass over the real data ended (paper, section 3.2).

        Args:
            told_by: who says so, in words, where it is no upstream.
        """
        self.epoch += 1
        self.pass_complete = False
        if not self.counted:
            self.told_by = told_by
        self._refresh()

    def step_counted(self) -> None:
        """A generator step was counted."""
        self.steps += 1

    def batch_delivered(self, last: bool) -> None:
        """The batch of a generator step was the ``last`` one of its epoch, or not."""
        self.pass_complete = last

    def told_by_upstream(self, told_by: str) -> None:
        """From now on a counter or a line of the upstream's says when an epoch ends."""
        self.counted, self.told_by = True, told_by

    def begin_at(self, epoch: int, steps: int) -> None:
        """Go on after so many epochs and generator steps; see TopK.begin_at()."""
        self.first_epoch += epoch - self.epoch
        self.first_step += steps - self.steps
        self.epoch, self.steps = epoch, steps
        self.pass_complete = False
        self._refresh()

    def as_told(self, other: EpochCount) -> None:
        """What holds for the process: who tells the epochs, and what is kept whatever they are."""
        self.counted = other.counted
        if self.counted:
            self.told_by = other.told_by
        if other._held is not None:
            self.hold(other._held)

    def can_drop(self, batch: int) -> bool:
        """Whether a row of such a batch could ever be dropped, however long it went on."""
        return first_fall(lambda epoch: self._fraction_at(epoch, self.steps), batch) is not None

    def hold(self, fraction: float) -> None:
        """Keep ``fraction`` from now on, whatever the epoch."""
        self._held = fraction
        self._refresh()

    @property
    def is_held(self) -> bool:
        """See :meth:`hold`."""
        return self._held is not None

    def forked(self) -> None:
        """This process is a fork: what was counted so far is the other one's."""
        self.first_step, self.first_epoch = self.steps, self.ended

    def to(self, device: torch.device | str) -> None:
        """Move what gates read."""
        self.numbers = self.numbers.to(device)

    def _refresh(self) -> None:
        held = self._held
        self.fraction = self._fraction_at(self.epoch, self.steps) if held is None else held
        keep_fraction(self.numbers, self.fraction)
