"""Steps of optimizers that are under way: one may hold closures, and the steps of others."""

from __future__ import annotations

import sys
import weakref
from types import FrameType

from torch.optim import Optimizer


class Running:
    """From the outermost step to the innermost; false where there is none."""

    def __init__(self) -> None:
        self._steps: list[tuple[weakref.ref[Optimizer], FrameType]] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def enter(self, optimizer: Optimizer, frame: FrameType) -> None:
        """A step of ``optimizer`` begins, in ``frame``."""
        while self._steps and not _is_running(self._steps[-1][1]):
            self._steps.pop()  # that step ended by an exception
        self._steps.append((weakref.ref(optimizer), frame))

    def leave(self, optimizer: Optimizer) -> None:
        """A step of ``optimizer`` ended, and with it what is still inside."""
        while self._steps:
            entered, _ = self._steps.pop()
            if entered() is optimizer:
                break


def _is_running(frame: FrameType) -> bool:
    running: FrameType | None = sys._getframe(1)
    while running is not None:
        if running is frame:
            return True
        running = running.f_back
    return False
