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

from topk_plugin.core.ranking import ballot, kept_rows, order_of

BALLOT, CALLS, ROWS, KEPT, NONFINITE, KEPT_SUM, DROPPED_SUM, THRESHOLD = range(8)
"""What a tally counts; each entry adds up over calls."""
TALLY_SIZE = 8

Select = Callable[[Tensor, Tensor], Tensor]


class GateState(NamedTuple):
    """What a gate reads at backward time; all 0-d float64 on the scores' device."""

    fraction: Tensor  # of the batch that is kept, in (0, 1]
    decided: Tensor  # direction: 1 high, -1 low, 0 still voting
    vote: Tensor  # sum of the generator steps' ballots so far


class Choice(NamedTuple):
    """What one backward pass keeps."""

    kept: Tensor  # (B,) bool
    scale: Tensor  # 0-d float64, weight of a kept row
    scores: Tensor  # (B,) that were ranked
    tally: Tensor  # (TALLY_SIZE,) float64
    ballots: Tensor | None = None  # (H,) float64, of several heads

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
        state: present fraction and direction.
        mean: kept rows weigh B/k (a mean over the batch becomes a mean over k rows, paper section
            3.3), else 1 (the sum over k rows of section 3.1).
        select: the mask (B,) of the rows to keep, of scores where higher is more realistic and k.
    """
    batch = ranking.shape[0]
    # schedule.k_of on the device, in the same precision
    k = torch.floor(state.fraction * batch + 1e-9).clamp(min=1)
    vote = ballot(row_gradient)
    # what is decided beats the votes so far (whole numbers), which beat this call's own ballot
    direction = torch.add(torch.add(vote + 0.5, state.vote, alpha=2), state.decided, alpha=1e9)
    sign = direction.sign()  # never 0: nothing is taken for high
    kept = select(ranking * sign.to(ranking.dtype), k)
    if select is not kept_rows:  # a plugin's: it may keep more or fewer than k
        kept = kept | (k == batch)
        k = kept.sum().to(torch.float64)
    # of no rows infinite, and keep() takes it for none
    rows = torch.full_like(k, batch)  # a number would be multiplied by 1/k, one rounding more
    scale = rows / k if mean else torch.ones_like(k)

    # few operations: on a small network every one of them shows
    wide = ranking.to(torch.float64)
    oriented = wide * sign
    tally = torch.stack(
        [
            vote,
            torch.ones_like(k),
            rows,
            k,
            (wide - wide != 0).sum().to(torch.float64),  # of NaN and the infinities NaN
            torch.where(kept, wide, 0.0).sum(),
            torch.where(kept, 0.0, wide).sum(),
            torch.where(kept, oriented, torch.inf).min() * sign,
        ]
    )
    return Choice(kept, scale, ranking, tally)


def ballots_of(gradients: Sequence[Tensor | None], batch: int) -> Tensor | None:
    """Which way the loss pushes each of several heads, (H,); None for one."""
    read = [g for g in gradients if g is not None]
    if len(read) < 2:
        return None
    return torch.stack([ballot(g.reshape(batch, -1).sum(dim=1)) for g in read])


def keep(gradient: Tensor, choice: Choice) -> Tensor:
    """``gradient`` (B, ...) with the dropped rows zero and the kept rows times ``scale``."""
    batch = choice.kept.shape[0]
    # () is the score of a batch of one
    rows = choice.kept.reshape([batch] + [1] * (gradient.dim() - 1) if gradient.dim() else [])
    # B/k in 16 bits is off by up to 4e-3: multiply in float32 at least, then round once
    wide = torch.promote_types(gradient.dtype, torch.float32)
    scaled = (gradient.to(wide) * choice.scale.to(wide)).to(gradient.dtype)
    # where, not a product: 0 * NaN of a dropped row is NaN
    return torch.where(rows, scaled, 0.0)


def keep_companion(gradient: Tensor | None, choice: Choice) -> Tensor | None:
    """:func:`keep` for an output that is no score: only if it has a row for each sample."""
    if gradient is None or gradient.shape[:1] != choice.kept.shape:
        return gradient
    return keep(gradient, choice)


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
        return float(self.state.fraction)

    def direction(self, votes: float) -> float:
        """The direction as far as it is known, by its sign (the device is waited for).

        Args:
            votes: cast since the latest step was counted.
        """
        return float(self.state.decided) or float(self.state.vote) + votes

    def choose(self, gradients: Sequence[Tensor | None]) -> Choice:
        """What a backward keeps in which the heads received ``gradients``, not all None."""
        self.order = order_of(self.ranking, gradients)
        batch = self.order.shape[0]
        rows = row_gradient(gradients, batch)
        choice = choose(self.order, rows, self.state, self.mean, self.select)
        return choice._replace(ballots=ballots_of(gradients, batch))
