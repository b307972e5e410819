"""Whether the rows of a critic's batch act on each other, seen in its first shielded calls.

A shielded call replays the critic's backward, which shows it: where rows are apart, dropped rows
receive exactly nothing, and kept ones what masking the critic's input gives. After a few such calls
the replay is left out, and looked at again now and then; once it showed otherwise (BatchNorm in
train mode, a deviation over the minibatch) it stays.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topk_plugin.core.graph import is_capturing
from topk_plugin.core.parameters import Owned
from topk_plugin.core.ranking import rows_scored
from topk_plugin.core.shielded_gate import Box

PROBED = 3
"""Calls that have to show it."""

AGAIN = 200
"""Calls after which it is looked at again."""


class _Answer:
    """A flag that the device gives when it comes to it; asking never waits.

    Args:
        flags: (2,) bool, see :func:`~topk_plugin.core.shielded_gate.rows_apart`.
    """

    def __init__(self, flags: Tensor) -> None:
        self._flags, self._event = flags, None
        if flags.is_cuda:
            self._flags = torch.empty(2, dtype=torch.bool, pin_memory=True)
            self._flags.copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def is_there(self) -> bool:
        return self._event is None or self._event.query()

    def read(self) -> tuple[bool, bool]:
        apart, told = self._flags.tolist()
        return apart, told


class _Input:
    """What is known of one of a critic's inputs."""

    def __init__(self) -> None:
        self.coupled = False
        self._shown = 0  # calls in a row that showed it to be apart
        self._calls = 0  # since
        self._answers: list[_Answer] = []

    def seen(self, flags: Tensor) -> None:
        self._answers.append(_Answer(flags))

    def apart(self) -> bool | None:
        """For the next call; None: it is to be looked at."""
        while self._answers and self._answers[0].is_there:
            apart, told = self._answers.pop(0).read()
            if told:
                self.coupled |= not apart
                self._shown += 1
        if self.coupled:
            return False
        if self._shown < PROBED:
            return None
        self._calls += 1
        return None if self._calls % AGAIN == 0 else True


class RowProbe:
    """Of one critic."""

    def __init__(self) -> None:
        self._parameters: Owned | None = None
        self._inputs: dict[Hashable, list[_Input]] = {}

    def tell(
        self, box: Box, parameters: Owned, ran: Hashable, inputs: list[Tensor], output: Any,
        rows: slice | None = None,
    ) -> None:  # fmt: skip
        """Put what is known into the ``box`` of a shielded call, whose forward has run.

        Args:
            parameters: the critic's; with others it is another critic.
            ran: what of the critic did, in which rows may be coupled or apart.
            inputs: (B, ...) that are gated.
            output: whatever the critic returned; scores of packs couple the rows of a pack.
            rows: that are ranked; the others of the batch are not to be masked.
        """
        if parameters is not self._parameters:
            self._parameters = parameters
            self._inputs.clear()
        key = (ran, len(inputs))
        if key not in self._inputs:
            self._inputs[key] = [_Input() for _ in inputs]
        known = self._inputs[key]
        apart = [one.apart() for one in known]
        if is_capturing(inputs[0]):  # nothing can be seen in it
            apart = [one is True for one in apart]
        if rows is not None or rows_scored(output, len(inputs[0])) != len(inputs[0]):
            apart = [False] * len(inputs)
        box.apart, box.seen = apart, partial(_seen, known)


def _seen(inputs: list[_Input], index: int, flags: Tensor) -> None:
    inputs[index].seen(flags)
