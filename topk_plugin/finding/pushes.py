"""Which way backward passes push a module's outputs, and for whose samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.choice import DROPPED_SUM, KEPT, KEPT_SUM, ROWS, THRESHOLD
from topk_plugin.core.sorted_choice import AnyChoice, SortedChoice

Pushes = dict[str, tuple[int, int, float]]
"""Of each output, numbers that a backward pushes up and down, and the mean of the gradient."""


Gradients = Sequence[tuple[str, Tensor]]
"""Of outputs by name, each (B, ...)."""


class Pull(NamedTuple):
    """A backward that left a gradient in a module's parameters."""

    task: int
    generated: bool  # by a call for samples of the generator
    pushes: Pushes


UNSEEN = Pull(-1, False, {})
"""Of a call that was not shown, as those are that are part of a compiled loss."""


def _push(gradient: Tensor) -> tuple[int, int, float]:
    wide = gradient.detach().double()
    numbers = torch.stack([(wide < 0).sum().double(), (wide > 0).sum().double(), wide.mean()])
    raised, lowered, mean = numbers.tolist()
    return int(raised), int(lowered), mean


def pushes(present: Gradients) -> Pushes:
    """Of each output; looked at on the host: the run is in its first steps, nothing is gated."""
    return {name: _push(gradient) for name, gradient in present}


def parted(
    present: Gradients, generated: bool | Tensor, batch: int
) -> Iterator[tuple[bool, Pushes]]:
    """The gradients for generated samples, and those for others, of a ``batch`` that holds both."""
    if isinstance(generated, Tensor) and all(g.shape[:1] == (batch,) for _, g in present):
        yield True, pushes([(name, g[generated]) for name, g in present])
        yield False, pushes([(name, g[~generated]) for name, g in present])
    else:
        yield isinstance(generated, Tensor) or generated, pushes(present)


def nothing_dropped(choice: AnyChoice) -> AnyChoice:
    """What a backward kept that no gate was in, where k < B: all of the batch."""
    if isinstance(choice, SortedChoice):
        batch = choice.batch
        return SortedChoice(choice.sort, batch, False, choice.ballot, choice.ballots)
    tally = choice.tally.clone()
    tally[KEPT] = tally[ROWS]
    tally[KEPT_SUM] += tally[DROPPED_SUM]
    tally[DROPPED_SUM] = 0
    tally[THRESHOLD] = torch.nan  # of no use, since nothing is below it
    none = torch.zeros_like(choice.dropped)
    return choice._replace(dropped=none, scale=None, tally=tally)


def added(a: Pushes, b: Pushes) -> Pushes:
    """Of two passes."""
    total = dict(a)
    for name, (raised, lowered, mean) in b.items():
        before = total.get(name, (0, 0, 0.0))
        total[name] = before[0] + raised, before[1] + lowered, before[2] + mean
    return total


def contrast(pulls: Sequence[Pull], twins: Mapping[str, Set[str]]) -> int:
    """Whether a step raised (1) or lowered (-1) generated samples against the others.

    Args:
        twins: for each score, the outputs for other samples that one call gives with it.
    """
    difference = 0.0
    fakes, others = ([p.pushes for p in pulls if p.generated is of] for of in (True, False))
    for name, beside in twins.items():
        of_fakes = [one[name][2] for one in fakes if name in one]
        of_others = [one[name][2] for one in others if name in one]
        of_others += [one[twin][2] for one in fakes for twin in beside & one.keys()]
        if of_fakes and of_others:  # a score moves against its gradient
            difference += sum(of_others) / len(of_others) - sum(of_fakes) / len(of_fakes)
    return (difference > 0) - (difference < 0)
