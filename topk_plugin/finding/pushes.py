"""Which way backward passes push a module's outputs, and for whose samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.choice import DROPPED_SUM, KEPT, KEPT_SUM, ROWS, THRESHOLD
from topk_plugin.core.sorted_choice import AnyChoice, SortedChoice
from topk_plugin.loop.heads import follows, read_alike

FEW = 4096
"""Numbers at which it is looked how a loss reads them: of more it takes long."""


class Push(NamedTuple):
    """What a backward does to one output."""

    raised: int  # numbers that it pushes up
    lowered: int
    mean: float  # of the gradient
    alike: bool = True  # of several numbers of a sample; see read_alike()
    read: Tensor | None = None  # (N,) bool: which of several get a gradient in some sample
    by_score: bool = False  # its score alone says how a number of it is pushed; see by_score()


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


def by_score(scores: Tensor, gradient: Tensor) -> bool:
    """Whether a loss has one target for all samples: the gradient rises or falls with the score.

    Args:
        scores, gradient: (B, N); of several numbers each by itself, or their mean.
    """
    step = -(-scores.numel() // FEW)  # all of many say no more
    each = follows(scores.flatten()[::step], gradient.flatten()[::step])
    return each or follows(scores.mean(1), gradient.mean(1))


def pushes(present: Gradients, scores: Mapping[str, Tensor] | None = None) -> Pushes:
    """Of each output; looked at on the host: the run is in its first steps, nothing is gated.

    Args:
        scores: (B, ...) of outputs with several numbers a sample that may be scores.
    """
    return {name: _push(gradient, (scores or {}).get(name)) for name, gradient in present}


def parted(
    present: Gradients, generated: bool | Tensor, batch: int, scores: Mapping[str, Tensor]
) -> Iterator[tuple[bool, Pushes]]:
    """The gradients for generated samples, and those for others, of a ``batch`` that holds both.

    Args:
        scores: the outputs themselves, of the same shapes.
    """
    if isinstance(generated, Tensor) and all(g.shape[:1] == (batch,) for _, g in present):
        for rows in (generated, ~generated):
            part = [(name, g[rows]) for name, g in present]
            yield rows is generated, _of_own(part, {name: s[rows] for name, s in scores.items()})
    else:
        yield isinstance(generated, Tensor) or generated, _of_own(present, scores)


def _of_own(present: Gradients, scores: Mapping[str, Tensor]) -> Pushes:
    """Of a module's own step."""
    told = pushes(present)
    for name, gradient in present:
        if gradient.numel():
            size = len(gradient) if gradient.dim() else 1
            of = (t.detach().double().reshape(size, -1) for t in (scores[name], gradient))
            told[name] = told[name]._replace(by_score=by_score(*of))
    return told


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
