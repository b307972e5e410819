"""Rows of several batches that compete for one k: those of all ranks, and of all micro-batches.

A row of the batch ``b`` of a rank that is kept weighs ``b * W * A / K`` where losses average, and
``W`` where they sum: of W ranks, whose gradients are averaged, with A micro-batches each, whose
losses are averaged by hand. That is the gradient of one process that has all the rows in one batch.

Everything but the number of a rank's own rows stays on the device, as in
:mod:`topk_plugin.core.choice`, of which this is another form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from topk_plugin.core.choice import (
    BALLOT,
    Choice,
    GateState,
    Ranked,
    Select,
    ballots_of,
    choose,
    row_gradient,
)
from topk_plugin.core.direction import NOT_ZERO
from topk_plugin.core.progress import EpochCount
from topk_plugin.core.ranking import ballot, kept_rows, order_of
from topk_plugin.errors import ConfigError


class Gathered(NamedTuple):
    """What every rank knows of the others, each tensor float64 and the same on all of them."""

    rows: Tensor  # (W, C) scores, of which each rank may have less than C
    sizes: Tensor  # (W,)
    lean: Tensor  # (W,): by its sum's sign which end is realistic; 0 and above: low scores
    fraction: Tensor  # 0-d, that is kept: the first rank's
    rank: int  # of this process, among them


class Peers(Protocol):
    """Other ranks that have rows in the contest."""

    @property
    def size(self) -> int:
        """W, at least 2."""

    def gather(self, rows: Tensor, lean: Tensor, fraction: float) -> Gathered:
        """All ranks' ``rows`` (n,); every rank has to call it."""


def places(scores: Tensor, turn: Tensor | float, absent: Tensor | None = None) -> Tensor:
    """The place of each row, (N,) from 0, most realistic first, ties by position, NaN last.

    Args:
        scores: (N,).
        turn: -1: high scores are realistic; 1: low ones. A number, or 0-d float64.
        absent: (N,) bool of rows that there are not: after all others.
    """
    # ascending: sort puts NaN, as the greatest, last
    order = torch.argsort(scores * turn, stable=True)
    if absent is not None:
        order = order[torch.argsort(absent[order].to(torch.uint8), stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class Outcome(NamedTuple):
    """What a contest came to, for the rows of this rank."""

    places: Tensor  # (n,) among the rows of all
    k: Tensor  # 0-d float64: rows that are kept of all
    worst: Tensor  # 0-d float64: score of the last one that is kept


def outcome(rows: Tensor, lean: Tensor, fraction: float, peers: Peers | None) -> Outcome:
    """Which rows are kept of a batch that may lie on several ranks.

    Args:
        rows: (n,) scores of this rank, float64.
        lean: 0-d float64, see :class:`Gathered`.
        fraction: that is kept of all rows.
        peers: the other ranks, if there are.
    """
    if peers is None:
        number = rows.new_full((), len(rows))
        kept = number.mul(fraction)
        scores, absent, first = rows, None, 0
    else:
        gathered = peers.gather(rows, lean, fraction)
        room = gathered.rows.shape[1]
        scores, first = gathered.rows.flatten(), gathered.rank * room
        column = torch.arange(room, device=rows.device, dtype=torch.float64)
        absent = (column >= gathered.sizes[:, None]).flatten()
        kept = gathered.sizes.sum() * gathered.fraction
        lean = gathered.lean.sum()
    # schedule.k_of on the device, in the same precision
    k = kept.add(1e-9).floor().clamp(min=1)
    # never 0: nothing is taken for high
    place = places(scores, (lean - NOT_ZERO).sign(), absent)
    worst = scores.masked_fill(place != k - 1, 0.0).sum()
    return Outcome(place[first : first + len(rows)], k, worst)


class Contest:
    """The rows of some calls of the critic, on one rank or several, that share one k.

    Args:
        calls: A, of this rank.
        peers: the other ranks, if there are.
    """

    def __init__(self, calls: int, peers: Peers | None) -> None:
        self.calls, self.peers = calls, peers
        self.blocks: list[Tensor] = []  # (B,), or (H, B); of each call
        # by which of several heads have a gradient: ranks decide, and gather, once for each
        self._outcomes: dict[tuple[bool, ...], Outcome] = {}

    def join(self, ranking: Tensor) -> int:
        """Where the rows (B,), or (H, B), of another call begin among those of this rank.

        Raises:
            ConfigError: more calls than there were to be.
        """
        if len(self.blocks) == self.calls:
            raise ConfigError(
                f"accumulate(steps={self.calls}): found another call of the critic on generated "
                f"samples, expected {self.calls}, one a micro-batch. Leave critic steps out of "
                "the context, or detach their samples."
            )
        begins = sum(block.shape[-1] for block in self.blocks)
        self.blocks.append(ranking)
        return begins

    def require_complete(self) -> None:
        """Raises ConfigError where a backward begins before the forward of the last call."""
        if len(self.blocks) < self.calls:
            raise ConfigError(
                f"accumulate(steps={self.calls}): found a backward pass after {len(self.blocks)} "
                f"of {self.calls} micro-batches, and which rows are kept is known after the last "
                "one's forward. Call backward() once, on the sum of the losses, after all "
                "forwards; where their graphs do not fit in memory at a time, leave accumulate() "
                "out, and each micro-batch is ranked by itself."
            )

    def outcome(self, gradients: Sequence[Tensor | None], lean: Tensor, fraction: float) -> Outcome:
        """See :func:`outcome`; by the first backward through one of the calls."""
        several = self.blocks[0].dim() > 1
        read = tuple(g is not None for g in gradients) if several else ()
        if read not in self._outcomes:
            rows = torch.cat([order_of(block, gradients).double() for block in self.blocks])
            self._outcomes[read] = outcome(rows, lean, fraction, self.peers)
        return self._outcomes[read]

    def weight(self, batch: int, k: Tensor, mean: bool) -> Tensor:
        """0-d float64: of a kept row of a call with ``batch`` rows."""
        ranks = 1 if self.peers is None else self.peers.size
        if mean:  # a number would be multiplied by 1/k, one rounding more
            return torch.full_like(k, batch * ranks * self.calls) / k
        return torch.full_like(k, ranks)


class Contestant:
    """The rows of one call of the critic in a :class:`Contest`.

    Args:
        contest: joined here.
        ranking: see :class:`~topk_plugin.core.sorted_choice.Sorted`; not changed later.
        progress: knows the fraction that is kept, at backward time.
        state: has the vote, at backward time.
        mean: see :func:`~topk_plugin.core.choice.choose`.
        inbox: (TALLY_SIZE,) that has ballots which have not reached the vote yet, if there are.
    """

    select: Select = staticmethod(kept_rows)

    def __init__(
        self, contest: Contest, ranking: Tensor, progress: EpochCount, state: GateState,
        mean: bool, inbox: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.batch, self.mean, self.ranking = ranking.shape[-1], mean, ranking
        self.order = ranking  # (B,) that ranked the batch in the latest backward
        self.contest, self._begins = contest, contest.join(ranking)
        self._progress, self._state, self._inbox = progress, state, inbox
        self._alone = Ranked(ranking, state, mean, kept_rows)

    def _lean(self, cast: Tensor | float) -> Tensor:
        """Which end is realistic, by the vote or else by what was just ``cast``."""
        low = self._state.low if self._inbox is None else self._state.low - self._inbox[BALLOT]
        return low + NOT_ZERO - 0.5 * cast

    def choose(self, gradients: Sequence[Tensor | None]) -> Choice:
        """What a backward keeps in which the heads received ``gradients``, not all None.

        Raises:
            ConfigError: see :meth:`Contest.require_complete`.
            RanksApart: another rank does not take part.
        """
        self.contest.require_complete()
        self.order = order = order_of(self.ranking, gradients)
        if self._progress.fraction == 1:  # on all ranks: nothing is gathered, nothing weighed
            return self._alone.choose(gradients)
        cast = ballot(row_gradient(gradients, self.batch))
        choice = self._of(self.contest.outcome(gradients, self._lean(cast), self._fraction), order)
        choice.tally[BALLOT] = cast
        return choice._replace(ballots=ballots_of(gradients, self.batch))

    def choose_before(self, assumed: float) -> Choice:
        """What is kept as far as is known before the call's own backward.

        Args:
            assumed: direction before the first ballot: 1 high, -1 low, 0 is taken for high.
        """
        self.contest.require_complete()
        if self._progress.fraction == 1:
            rows = torch.full_like(self.ranking, -assumed)
            return choose(self.ranking, rows, self._state, self.mean)
        found = self.contest.outcome([self.ranking], self._lean(assumed), self._fraction)
        return self._of(found, self.ranking)

    @property
    def _fraction(self) -> float:
        return self._progress.fraction

    def _of(self, found: Outcome, order: Tensor) -> Choice:
        place = found.places[self._begins : self._begins + self.batch]
        dropped = place >= found.k
        kept = (self.batch - dropped.sum(dtype=torch.float64))[None]
        once, rows = kept.new_ones(1), kept.new_full((1,), self.batch)
        wide = order.double()
        nonfinite = (wide - wide != 0).sum(dtype=torch.float64)[None]
        sums = [wide.masked_fill(out, 0.0).sum()[None] for out in (dropped, ~dropped)]
        tally = torch.cat([kept * 0, once, rows, kept, nonfinite, *sums, found.worst[None]])
        scale = self.contest.weight(self.batch, found.k, self.mean)
        return Choice(dropped, scale, order, tally)
