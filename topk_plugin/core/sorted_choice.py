"""Which rows of a batch the generator learns from, in an eager step: k is a Python number there.

So nothing is computed for k and the weight of a kept row on the device. Where the host knows which
end is realistic, the scores are sorted in the forward pass, and the backward multiplies once and
writes zeros into the dropped rows; while generator steps still vote, the backward sorts, by a sign
that stays on the device. What is counted is read off the sorted scores, many calls at a time, and
later. It is :func:`topk_plugin.core.choice.choose` in another form: neither branches on a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from topk_plugin.core.choice import (
    BALLOT,
    CALLS,
    KEPT,
    ROWS,
    Choice,
    Select,
    ballots_of,
    row_gradient,
)
from topk_plugin.core.direction import Direction, lead_of
from topk_plugin.core.progress import EpochCount
from topk_plugin.core.ranking import ballot, kept_rows, order_of
from topk_plugin.core.schedule import k_of


class Sort:
    """The scores of a batch, most realistic first, ties by position, NaN last.

    Args:
        rows: (B,).
        turn: -1: high scores are realistic; 1: low ones. A number, or 0-d float64.
        stay: nobody changes ``rows`` later.
    """

    def __init__(self, rows: Tensor, turn: Tensor | float, stay: bool = False) -> None:
        self.turn = turn
        if stay:
            self.scores = rows
        # ascending: sort puts NaN, as the greatest, last
        self.keys, self.order = torch.sort(self._turned(rows), stable=True)

    def _turned(self, values: Tensor) -> Tensor:
        if type(self.turn) is float:
            return values.neg() if self.turn < 0 else values
        return values * self.turn

    @cached_property
    def scores(self) -> Tensor:
        """(B,) as they were given."""
        scores = self._turned(self.keys)
        return torch.empty_like(scores).scatter_(0, self.order, scores)


class SortedChoice:
    """What one backward pass keeps; what :class:`Choice` holds is computed when it is read.

    Args:
        k: rows that are kept, 1 to B.
        mean: see :func:`~topk_plugin.core.choice.choose`.
        ballot: 0-d float64, and ``ballots`` (H,) of several heads, as in Choice; None: the vote on
            the direction is over.
    """

    def __init__(
        self,
        sort: Sort,
        k: int,
        mean: bool,
        ballot: Tensor | None = None,
        ballots: Tensor | None = None,
    ) -> None:
        self.sort, self.k, self.ballot, self.ballots = sort, k, ballot, ballots
        self.batch = len(sort.order)
        self.weight = self.batch / k if mean else 1.0

    @property
    def _dropped(self) -> Tensor | None:
        """Positions (B - k,); None: nothing is."""
        dropped = self.batch - self.k
        return self.sort.order.narrow(0, self.k, dropped) if dropped else None

    def keep(self, gradient: Tensor) -> Tensor:
        """``gradient`` (B, ...) with the dropped rows zero and the kept rows weighted."""
        dropped = self._dropped
        if dropped is None:
            return gradient
        # a Python number multiplies 16 bits in float32 and is rounded once
        scaled = gradient * self.weight if self.weight != 1 else gradient.clone()
        # filled, not multiplied: 0 * NaN of a dropped row is NaN
        return scaled.index_fill_(0, dropped, 0.0)

    @property
    def scores(self) -> Tensor:
        """(B,) that were ranked."""
        return self.sort.scores

    @cached_property
    def kept(self) -> Tensor:
        """(B,) bool."""
        kept = torch.ones_like(self.sort.order, dtype=torch.bool)
        dropped = self._dropped
        return kept if dropped is None else kept.index_fill_(0, dropped, False)

    @property
    def cast(self) -> Tensor:
        """(H,) float64 ballots of its heads; 0 where none is cast any more."""
        if self.ballots is not None:
            return self.ballots
        if self.ballot is None:
            return self.sort.keys.new_zeros(1, dtype=torch.float64)
        return self.ballot.reshape(1)

    def votes_with(self, other: AnyChoice) -> None:
        """A second backward went through the same call, after that of ``other``; both vote."""
        if self.ballot is not None and isinstance(other, SortedChoice) and other.ballot is not None:
            self.ballot = self.ballot + other.ballot


AnyChoice = Choice | SortedChoice


def tally_of(choices: Sequence[SortedChoice]) -> Tensor:
    """The sum of their tallies, (TALLY_SIZE,) float64, by few operations for choices alike.

    Args:
        choices: one at least.
    """
    alike: dict[tuple[object, ...], list[SortedChoice]] = {}
    for one in choices:
        keys, turn = one.sort.keys, one.sort.turn
        how = "on the device" if isinstance(turn, Tensor) else turn
        kind = (one.k, how, one.batch, keys.dtype, keys.device)
        alike.setdefault(kind, []).append(one)
    tallies = [_tally_alike(several) for several in alike.values()]
    total = tallies[0]
    for tally in tallies[1:]:
        total = total + tally.to(total.device)
    return total


def _tally_alike(choices: Sequence[SortedChoice]) -> Tensor:
    first, count = choices[0], len(choices)
    k, turn = first.k, first.sort.turn
    keys = torch.stack([one.sort.keys for one in choices]).to(torch.float64)
    turns = [one.sort.turn for one in choices if isinstance(one.sort.turn, Tensor)]
    scores = keys * (torch.stack(turns)[:, None] if turns else turn)
    nonfinite = (keys - keys != 0).sum().to(torch.float64)  # of NaN and the infinities NaN
    known = {CALLS: count, ROWS: count * first.batch, KEPT: count * k}
    # filled on the device: a number that is copied there may have to wait
    host = [keys.new_full((), known.get(i, 0)) for i in range(KEPT + 1)]
    ballots = [one.ballot for one in choices if one.ballot is not None]
    if ballots:
        host[BALLOT] = torch.stack(ballots).sum()
    worst = scores[:, k - 1].sum()  # NaN where one is kept
    return torch.stack([*host, nonfinite, scores[:, :k].sum(), scores[:, k:].sum(), worst])


class Sorted:
    """Scores of a batch, of which an eager step keeps some.

    Args:
        ranking: (B,), or (H, B) of heads of which the gradient tells which are (:func:`order_of`);
            a later change of it is not seen.
        progress: knows the fraction that is kept, at backward time.
        vote: on the direction.
        mean: see :func:`~topk_plugin.core.choice.choose`.
        inbox: (TALLY_SIZE,) that has ballots which have not reached the vote yet, if there are.
    """

    select: Select = staticmethod(kept_rows)

    def __init__(
        self, ranking: Tensor, progress: EpochCount, vote: Direction, mean: bool,
        inbox: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.mean = mean
        self._progress, self._vote, self._inbox = progress, vote, inbox
        self.batch = ranking.shape[-1]
        self._sort: Sort | None = None
        self._ranking: Tensor | None = None
        if vote.known and ranking.dim() == 1:
            self._sort = Sort(ranking, -vote.known)
        else:
            self._ranking = ranking.clone()

    @property
    def ranking(self) -> Tensor:
        """(B,) or (H, B), as it was given."""
        if self._ranking is not None:
            return self._ranking
        assert self._sort is not None  # there is one of the two
        return self._sort.scores

    @property
    def order(self) -> Tensor:
        """(B,) that ranked the batch in the latest backward; before, the ranking."""
        return self.ranking if self._sort is None else self._sort.scores

    def of(self, rows: Tensor) -> Sorted:
        """The same of some rows alone, (N,) positions."""
        ranking = self.ranking.index_select(-1, rows)
        return Sorted(ranking, self._progress, self._vote, self.mean, self._inbox)

    @property
    def fraction(self) -> float:
        """That is kept."""
        return self._progress.fraction

    def direction(self, votes: float) -> float:
        """The direction as far as it is known, by its sign (the device is waited for).

        Args:
            votes: cast since the latest step was counted, beside those in the inbox.
        """
        return self._vote.known or lead_of(self._low()) + votes

    def _low(self) -> Tensor:
        low = self._vote.low
        return low if self._inbox is None else low - self._inbox[BALLOT]

    def choose(self, gradients: Sequence[Tensor | None]) -> SortedChoice:
        """What a backward keeps in which the heads received ``gradients``, not all None."""
        k = k_of(self._progress.fraction, self.batch)
        if self._ranking is None:
            assert self._sort is not None  # there is one of the two
            return SortedChoice(self._sort, k, self.mean)
        rows = order_of(self._ranking, gradients)
        if self._vote.known:
            self._sort = Sort(rows, -self._vote.known, stay=True)
            return SortedChoice(self._sort, k, self.mean)
        cast = ballot(row_gradient(gradients, self.batch))
        # what was voted so far beats this call's own ballot; nothing is taken for high
        turn = torch.sub(self._low().to(cast.device), cast, alpha=0.5).sign()
        self._sort = Sort(rows, turn, stay=True)
        return SortedChoice(self._sort, k, self.mean, cast, ballots_of(gradients, self.batch))

    def choose_before(self, assumed: float) -> SortedChoice:
        """What is kept as far as is known before the first backward.

        Args:
            assumed: direction before the first ballot: 1 high, -1 low, 0 is taken for high.
        """
        k = k_of(self._progress.fraction, self.batch)
        sort = self._sort
        if self._ranking is not None:
            turn = -self._vote.known or self._low().sub(0.5 * assumed).sign()
            sort = Sort(self._ranking, turn, stay=True)
        assert sort is not None  # else there is a ranking
        return SortedChoice(sort, k, self.mean)
