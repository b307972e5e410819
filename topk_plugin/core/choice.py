"""Which rows of a batch the generator learns from, and the gradient that remains of the others.

Nothing here branches on a tensor or moves a number to the host. k is computed on the device from
a 0-d tensor, so one compiled or captured graph serves all epochs. Plugins may choose here, and
other outputs follow. Plain eager steps take another form, :mod:`topk_plugin.core.sorted_choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.direction import lead_of
from topk_plugin.core.ranking import ballot, kept_rows, order_of

BALLOT, CALLS, ROWS, KEPT, NONFINITE, KEPT_SUM, DROPPED_SUM, THRESHOLD = range(8)
"""What a tally counts; each entry adds up over calls."""
TALLY_SIZE = 8

Select = Callable[[Tensor, Tensor], Tensor]


def gate_numbers(fraction: float) -> Tensor:
    """What changes with the epoch alone, and what never does, so that no gate computes it; (5, 3).

    Its lines: what CALLS, ROWS and KEPT are for a call, and for each row of its batch. Of KEPT_SUM,
    DROPPED_SUM and THRESHOLD, the first and the last rank that they are sums of, counted from the
    first rank that is dropped; and (of two of them) whether kept rows are left out.

    Args:
        fraction: of the batch that is kept, in (0, 1].
    """
    infinite = torch.inf
    ranks = [[-infinite, 0, -1], [-1, infinite, -1]]
    numbers = [[1, 0, 1e-9], [0, 1, fraction], *ranks, [0, 1, torch.nan]]
    return torch.tensor(numbers, dtype=torch.float64)


def keep_fraction(numbers: Tensor, fraction: float) -> None:
    """Another ``fraction`` from now on, in place: captured graphs read them where they are."""
    numbers[1, 2].fill_(fraction)  # not assigned, which may wait for a copy


class GateState(NamedTuple):
    """What a gate reads at backward time; float64 on the scores' device."""

    numbers: Tensor  # (5, 3), see gate_numbers
    low: Tensor  # 0-d, see Direction.low

    @property
    def fraction(self) -> float:
        """That is kept (the device is waited for)."""
        return float(self.numbers[1, 2])


class Choice(NamedTuple):
    """What one backward pass keeps."""

    dropped: Tensor  # (B,) bool
    scale: Tensor | None  # 0-d float64, weight of a kept row; None: 1
    scores: Tensor  # (B,) that were ranked
    tally: Tensor  # (TALLY_SIZE,) float64
    ballots: Tensor | None = None  # (H,) float64, of several heads

    @property
    def kept(self) -> Tensor:
        """(B,) bool."""
        return ~self.dropped

    @property
    def batch(self) -> int:
        """B."""
        return self.scores.shape[0]

    @property
    def cast(self) -> Tensor:
        """(H,) ballots of its heads."""
        return self.tally[BALLOT].reshape(1) if self.ballots is None else self.ballots

    def keep(self, gradient: Tensor) -> Tensor:
        """See :func:`keep`."""
        return keep(gradient, self)

    def votes_with(self, other: Any) -> None:
        """A second backward went through the same call, after that of ``other``; both vote."""
        self.tally[BALLOT] += other.tally[BALLOT]


def choose(
    ranking: Tensor,
    row_gradient: Tensor,
    state: GateState,
    mean: bool,
    select: Select = kept_rows,
) -> Choice:
    """Rank a batch and say which rows' gradients pass, and with what weight.

    Args:
        ranking: (B,) scores.
        row_gradient: (B,) gradient of the loss by each row's score; only its signs are used.
        state: present fraction and direction; ballots that were not counted yet included.
        mean: kept rows weigh B/k (a mean over the batch becomes a mean over k rows, paper section
            3.3), else 1 (the sum over k rows of section 3.1).
        select: the mask (B,) of the rows to keep, of scores where higher is more realistic and k.
    """
    # few operations: on a small network every one of them shows
    batch = ranking.shape[0]
    once, per_row, first, last, left_out = state.numbers.unbind()
    # schedule.k_of on the device, in the same precision; 1, B, k
    counted = torch.add(once, per_row, alpha=batch).floor().clamp(min=1)
    rows, k = counted[1], counted[2]
    vote = ballot(row_gradient)
    nonfinite = (ranking - ranking != 0).sum(dtype=torch.float64)  # of NaN and infinities NaN
    if select is kept_rows:
        # what is known beats this call's own ballot; never 0: nothing is taken for high
        turn = torch.sub(state.low, vote, alpha=0.5).sign()
        # ascending: sort puts NaN, as the greatest, last
        place = torch.argsort(torch.argsort(ranking * turn, stable=True)) - k
        others = place.clamp(first[:, None], last[:, None]) != place
        sums = [ranking.masked_fill(others, 0.0).sum(dim=1, dtype=torch.float64)]
    else:
        sign = torch.sub(vote, state.low, alpha=2).sign()
        oriented = ranking * sign
        kept = select(oriented, k) | (k == batch)
        k = kept.sum(dtype=torch.float64)  # a plugin may keep more or fewer
        others = left_out[:2, None] == kept
        worst = oriented.masked_fill(others[0], torch.inf).min() * sign
        sums = [ranking.masked_fill(others, 0.0).sum(dim=1, dtype=torch.float64), worst[None]]
    # of no rows infinite, and keep() takes it for none; a number B would be multiplied by 1/k,
    # one rounding more
    scale = rows / k if mean else None
    tally = torch.cat([vote[None], counted[:2], k[None], nonfinite[None], *sums])
    return Choice(others[0], scale, ranking, tally)


def ballots_of(gradients: Sequence[Tensor | None], batch: int) -> Tensor | None:
    """Which way the loss pushes each of several heads, (H,); None for one."""
    read = [g for g in gradients if g is not None]
    if len(read) < 2:
        return None
    return torch.stack([ballot(g.reshape(batch, -1).sum(dim=1)) for g in read])


def keep(gradient: Tensor, choice: Choice) -> Tensor:
    """``gradient`` (B, ...) with the dropped rows zero and the kept rows times ``scale``."""
    # () is the score of a batch of one
    rows = choice.dropped.reshape([-1] + [1] * (gradient.dim() - 1) if gradient.dim() else [])
    # filled, not multiplied: 0 * NaN of a dropped row is NaN
    if choice.scale is None:
        return gradient.masked_fill(rows, 0.0)
    # B/k in 16 bits is off by up to 4e-3: multiply in float32, then round once
    narrow = gradient.dtype in (torch.float16, torch.bfloat16)
    scaled = (gradient.float() if narrow else gradient) * choice.scale
    return scaled.to(gradient.dtype).masked_fill_(rows, 0.0)


def keep_companion(gradient: Tensor | None, choice: Any) -> Tensor | None:
    """What a ``choice`` keeps of an output that is no score: only if it has a row a sample."""
    if gradient is None or gradient.shape[:1] != (choice.batch,):
        return gradient
    kept: Tensor = choice.keep(gradient)
    return kept


def row_gradient(gradients: Sequence[Tensor | None], batch: int) -> Tensor:
    """Gradient of the loss by each row's score, (B,): summed over heads and patches."""
    rows = [
        g.reshape(batch) if g.numel() == batch else g.reshape(batch, -1).sum(dim=1)
        for g in gradients
        if g is not None
    ]
    return rows[0] if len(rows) == 1 else torch.stack([r.double() for r in rows]).sum(dim=0)


class Ranked:
    """Scores of a batch, of which the device says what is kept.

    Args:
        ranking: (B,), or (H, B) of heads of which the gradient tells which are (:func:`order_of`).
        state: fraction and direction; read at backward time.
        mean, select: see :func:`choose`.
    """

    def __init__(self, ranking: Tensor, state: GateState, mean: bool, select: Select) -> None:
        self.ranking, self.state, self.mean, self.select = ranking, state, mean, select
        self.order = ranking  # (B,) that ranked the batch in the latest backward

    @property
    def fraction(self) -> float:
        """That is kept (the device is waited for)."""
        return self.state.fraction

    def of(self, rows: Tensor) -> Ranked:
        """The same of some rows alone, (N,) positions."""
        return Ranked(self.ranking.index_select(-1, rows), self.state, self.mean, self.select)

    def direction(self, votes: float) -> float:
        """The direction as far as it is known, by its sign (the device is waited for).

        Args:
            votes: cast since the latest step was counted.
        """
        return lead_of(self.state.low) + votes

    def choose(self, gradients: Sequence[Tensor | None]) -> Choice:
        """What a backward keeps in which the heads received ``gradients``, not all None."""
        self.order = order_of(self.ranking, gradients)
        batch = self.order.shape[0]
        rows = row_gradient(gradients, batch)
        choice = choose(self.order, rows, self.state, self.mean, self.select)
        return choice._replace(ballots=ballots_of(gradients, batch))
