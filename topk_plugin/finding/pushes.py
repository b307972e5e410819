"""Which way backward passes push a module's outputs, and for whose samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.choice import DROPPED_SUM, KEPT, KEPT_SUM, ROWS, THRESHOLD
from topk_plugin.core.sorted_choice import AnyChoice, SortedChoice
from topk_plugin.loop.heads import read_alike


class Push(NamedTuple):
    """What a backward does to one output."""

    raised: int  # numbers that it pushes up
    lowered: int
    mean: float  # of the gradient
    alike: bool = True  # of several numbers of a sample; see read_alike()
    read: Tensor | None = None  # (N,) bool: which of several get a gradient in some sample

    @property
    def turned(self) -> Push:
        """The same where what steps by it ascends."""
        return self._replace(raised=self.lowered, lowered=self.raised, mean=-self.mean)


Pushes = dict[str, Push]
"""Of each output."""


Gradients = Sequence[tuple[str, Tensor]]
"""Of outputs by name, each (B, ...)."""


class Pull(NamedTuple):
    """A backward that left a gradient in a module's parameters."""

    task: int
    generated: bool  # by a call for samples of the generator
    pushes: Pushes


UNSEEN = Pull(-1, False, {})
"""Of a call that was not shown, as those are that are part of a compiled loss."""


def _push(gradient: Tensor, scores: Tensor | None) -> Push:
    wide = gradient.detach().double()
    numbers = torch.stack([(wide < 0).sum().double(), (wide > 0).sum().double(), wide.mean()])
    raised, lowered, mean = numbers.tolist()
    push = Push(int(raised), int(lowered), mean)
    if scores is None or not raised + lowered:
        return push
    rows = wide.flatten(1)
    return push._replace(
        alike=read_alike(scores.detach().flatten(1), rows), read=(rows != 0).any(0).cpu()
    )


def pushes(present: Gradients, scores: Mapping[str, Tensor] | None = None) -> Pushes:
    """Of each output; looked at on the host: the run is in its first steps, nothing is gated.

    Args:
        scores: (B, ...) of outputs with several numbers a sample that may be scores.
    """
    return {name: _push(gradient, (scores or {}).get(name)) for name, gradient in present}


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


def stepped(given: Pushes, way: int) -> Pushes:
    """What an optimizer makes of it, by its :func:`~topk_plugin.core.parameters.way_of`."""
    return {name: push.turned for name, push in given.items()} if way == -1 else given


def added(a: Pushes, b: Pushes) -> Pushes:
    """Of two passes."""
    total = dict(a)
    for name, two in b.items():
        one = total.get(name)
        if one is not None:
            both = [push.read for push in (one, two) if push.read is not None]
            two = Push(
                one.raised + two.raised, one.lowered + two.lowered, one.mean + two.mean,
                one.alike and two.alike, torch.stack(both).any(0) if both else None,
            )  # fmt: skip
        total[name] = two
    return total


def contrast(pulls: Sequence[Pull], twins: Mapping[str, Set[str]]) -> int:
    """Whether a step raised (1) or lowered (-1) generated samples against the others.

    Args:
        twins: for each score, the outputs for other samples that one call gives with it.
    """
    difference = 0.0
    fakes, others = ([p.pushes for p in pulls if p.generated is of] for of in (True, False))
    for name, beside in twins.items():
        of_fakes = [one[name].mean for one in fakes if name in one]
        of_others = [one[name].mean for one in others if name in one]
        of_others += [one[twin].mean for one in fakes for twin in beside & one.keys()]
        if of_fakes and of_others:  # a score moves against its gradient
            difference += sum(of_others) / len(of_others) - sum(of_fakes) / len(of_fakes)
    return (difference > 0) - (difference < 0)
