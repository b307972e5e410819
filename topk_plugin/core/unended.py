"""A loop that never says when an epoch ends, in which k stays B: told when its TopK is gone."""

from __future__ import annotations

import os
import sys

from topk_plugin.core.training import Trainings
from topk_plugin.streams import count, say

FEW = 100
"""Generator steps below which nothing is said: a trial, a test, a script that failed."""

MANY = 10_000
"""Generator steps after which it is said before the end."""

HOW_TO_END = (
    "Call topk.end_epoch() after each pass over the data, give its DataLoader to attach(..., "
    "loader=loader), or count by steps, TopK(every=N)."
)


def unended(trainings: Trainings) -> int:
    """Generator steps of ``trainings`` if no epoch has ended and k is B because of that, else 0."""
    ended = any(t.progress.ended != t.progress.first_epoch for t in trainings.all)
    falls = any(t.progress.fraction < 1 or t.progress.is_held for t in trainings.all)
    return 0 if ended or falls or trainings.current.progress.counted else trainings.steps


def remind(trainings: Trainings) -> None:
    """Says so on stderr, when a process ends without an error, or its TopK is gone."""
    steps = unended(trainings)
    failed = getattr(sys, "last_value", None) is not None
    if steps >= FEW and not failed and os.environ.get("RANK", "0") == "0":
        say(
            f"topk: {count(steps, 'generator step')} and no epoch that ended, so k stayed at the "
            f"batch and no row was dropped. {HOW_TO_END}"
        )
