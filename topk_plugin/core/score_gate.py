"""The score gate: an identity on the critic's scores that keeps k rows of their gradient.

It masks what passes through it (paper, section 3.3: ``generator_loss(topk(scores))``); other
outputs of the critic may follow the rows of a gated call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topk_plugin.compat import is_compiling
from topk_plugin.core.choice import (
    BALLOT,
    Choice,
    GateState,
    Select,
    ballots_of,
    choose,
    keep,
    keep_companion,
    row_gradient,
)
from topk_plugin.core.contest import Contestant
from topk_plugin.core.ranking import kept_rows, order_of
from topk_plugin.core.sorted_choice import AnyChoice, Sorted


class ScoreGate(torch.autograd.Function):
    """Line A's gate: ``apply(weigh, select, arrived, inbox, heads, ranking, *state, *tensors)``.

    ``weigh`` is "mean" or "sum" (see :func:`choose`), or "none" to count and vote only; ``ranking``
    is (B,), or (H, B) of heads of which the gradient tells which are (:func:`order_of`). Of the
    tensors (B, ...) the first ``heads`` are scores, whose gradient votes; the rest are companions,
    which follow the kept rows. Returns the tensors unchanged, as a tuple. The backward adds its
    tally to ``inbox`` in place and, where Python runs, calls ``arrived``; nothing else leaves it,
    so it compiles with ``fullgraph=True``.
    """

    @staticmethod
    def forward(
        weigh: str, select: Select, arrived: Callable[[Choice], None] | None, inbox: Tensor,
        heads: int, ranking: Tensor, numbers: Tensor, low: Tensor, *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        # detach shares memory but, unlike a view, may be changed in place by the loop
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.weigh, ctx.select, ctx.arrived, ctx.inbox, ctx.heads, ranking, *state = inputs[:8]
        ctx.save_for_backward(ranking)
        # not saved tensors: two calls may share them, and the first one's backward writes inbox
        ctx.state = tuple(state)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 8
        compiling = is_compiling()
        heads, companions = gradients[: ctx.heads], gradients[ctx.heads :]
        # inside a gate's backward, grad mode means create_graph
        if (torch.is_grad_enabled() and not compiling) or all(g is None for g in heads):
            return nothing + gradients
        (ranking,) = ctx.saved_tensors
        numbers, low = ctx.state
        # what is in the inbox has not reached the vote yet
        state = GateState(numbers, low - ctx.inbox[BALLOT])
        order = order_of(ranking, heads)
        rows = row_gradient(heads, len(order))
        choice = choose(order, rows, state, ctx.weigh == "mean", ctx.select)
        if ctx.arrived is None or compiling:
            ctx.inbox.add_(choice.tally)
        elif hasattr(ctx, "order"):  # a second backward: the same rows again, and another ballot
            ctx.inbox[BALLOT] += choice.tally[BALLOT]
        else:
            ctx.inbox.add_(choice.tally)
            ctx.order = order
            ctx.arrived(choice._replace(ballots=ballots_of(heads, len(order))))
        if ctx.weigh == "none":
            return nothing + gradients
        kept = tuple(None if g is None else keep(g, choice) for g in heads)
        return nothing + kept + tuple(keep_companion(g, choice) for g in companions)


class SortedGate(torch.autograd.Function):
    """Line A's gate in a plain eager step: ``apply(ranked, arrived, heads, masks, *tensors)``.

    Of the tensors (B, ...) the first ``heads`` are scores, as in :class:`ScoreGate`; returns them
    all unchanged, as a tuple. ``ranked`` may be what makes it of the first of them, detached. Each
    backward calls ``arrived``, with what it keeps and whether it is the first one through this
    gate; unless it ``masks``, that is all it does.
    """

    # no setup_context, which torch.func needs: it takes longer than all the rest
    @staticmethod
    def forward(
        ctx: Any, ranked: Sorted | Contestant | Callable[[Tensor], Sorted],
        arrived: Callable[[AnyChoice, bool], None], heads: int, masks: bool, *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        gated = tuple([tensor.detach() for tensor in tensors])  # a generator takes longer
        ctx.ranked = ranked(gated[0]) if callable(ranked) else ranked
        ctx.arrived, ctx.heads, ctx.masks, ctx.first = arrived, heads, masks, True
        ctx.set_materialize_grads(False)
        return gated

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        heads = gradients[: ctx.heads]
        # inside a gate's backward, grad mode means create_graph
        if torch.is_grad_enabled() or all(g is None for g in heads):
            return None, None, None, None, *gradients
        choice = ctx.ranked.choose(heads)
        ctx.arrived(choice, ctx.first)
        ctx.first = False
        if not ctx.masks:
            return None, None, None, None, *gradients
        kept = [None if g is None else choice.keep(g) for g in heads]
        kept += [keep_companion(g, choice) for g in gradients[ctx.heads :]]
        return None, None, None, None, *kept


class Followed:
    """A gated call, for outputs of later calls that follow its rows.

    Args:
        ranking, state, mean, select: see :func:`choose`.
        inbox: of the gate, with ballots that have not reached the vote yet.
        assumed: direction before the first ballot: 1 high, -1 low.
    """

    def __init__(
        self, ranking: Tensor, state: GateState, mean: bool, select: Select, inbox: Tensor,
        assumed: float,
    ) -> None:  # fmt: skip
        self.ranking, self.state, self.mean = ranking, state, mean
        self.batch = ranking.shape[0]
        self.inbox, self.assumed = inbox, assumed
        self._select = select
        self._mask: Tensor | None = None

    def select(self, scores: Tensor, k: Tensor) -> Tensor:
        """A plugin's selection, asked once: it may draw at random."""
        if self._mask is None:
            self._mask = self._select(scores, k)
        return self._mask

    def choice(self) -> Choice:
        """What the call keeps, as far as is known before its own backward."""
        select = kept_rows if self._select is kept_rows else self.select
        state = self.state._replace(low=self.state.low - self.inbox[BALLOT])
        # this backward runs before the call's own, whose ballot counts where none came before it
        rows = torch.full_like(self.ranking, -self.assumed)
        return choose(self.ranking, rows, state, self.mean, select)


class SortedFollowed:
    """The same in a plain eager step.

    Args:
        ranked: scores of the gated call.
        assumed: see :class:`Followed`.
    """

    def __init__(self, ranked: Sorted | Contestant, assumed: float) -> None:
        self.ranked, self.assumed = ranked, assumed
        self.batch = ranked.batch

    @property
    def ranking(self) -> Tensor:
        """(B,)."""
        return self.ranked.ranking

    def choice(self) -> AnyChoice:
        """See :meth:`Followed.choice`."""
        return self.ranked.choose_before(self.assumed)


class FollowGate(torch.autograd.Function):
    """``apply(followed, *tensors)``: the tensors (B, ...), which follow another call's rows."""

    @staticmethod
    def forward(
        ctx: Any, followed: Followed | SortedFollowed, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.followed = followed
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        # inside a gate's backward, grad mode means create_graph
        if torch.is_grad_enabled() or all(g is None for g in gradients):
            return (None, *gradients)
        choice = ctx.followed.choice()
        return (None, *(keep_companion(g, choice) for g in gradients))
