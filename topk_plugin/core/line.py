"""What the lines in a loop of one's own do: ``topk(scores)``, ``follow`` and ``gather``.

Every backward through these gates is a generator step's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topk_plugin.compat import is_compiling
from topk_plugin.core.choice import BALLOT, Choice, Ranked, Select
from topk_plugin.core.contest import Contestant
from topk_plugin.core.graph import is_capturing, require_whole
from topk_plugin.core.ledger import StepLedger
from topk_plugin.core.optimizers import listen
from topk_plugin.core.outputs import companions, with_named_apart, with_replaced
from topk_plugin.core.ranking import kept_rows, ranking_scores, score_heads, table
from topk_plugin.core.schedule import k_of
from topk_plugin.core.scope import Scope, require_eager
from topk_plugin.core.score_gate import (
    Followed,
    FollowGate,
    ScoreGate,
    SortedFollowed,
    SortedGate,
)
from topk_plugin.core.sorted_choice import AnyChoice, Sort, Sorted
from topk_plugin.core.training import Training, Trainings
from topk_plugin.errors import ConfigError, DirectionUnknown, ScoreShapeError

AnyRanked = Ranked | Sorted | Contestant
"""What says which rows of a call are kept."""


class LineGate:
    """Gates scores that are given by hand; the plain part of TopK's calls.

    Args:
        heads: names of the critic's outputs that are scores; empty: by their shapes.
        ask_scores: plugins' answer to the same question, or None; None: there is no such plugin.
        select: see :func:`~topk_plugin.core.choice.choose`.
        ledger: told what arrived.
        trainings: what gates read, and where they count.
        scope: whose rows compete.
    """

    def __init__(
        self, heads: Sequence[str | int], ask_scores: Callable[..., Any] | None, select: Select,
        ledger: StepLedger, trainings: Trainings, scope: Scope,
    ) -> None:  # fmt: skip
        self._heads, self._ask_scores, self.select = heads, ask_scores, select
        self.ledger, self.trainings, self.scope = ledger, trainings, scope
        self._is_direct = ask_scores is None and not heads and select is kept_rows
        # the latest gated call, where outputs may follow it
        self._latest: Followed | SortedFollowed | None = None

    def settled(self) -> None:
        """The generator step ended: no output follows its calls any more."""
        self._latest = None

    def heads_of(
        self, output: Any, batch: int | None, names: Sequence[str | int] = (),
        depends: Callable[[Tensor], bool] | None = None,
    ) -> tuple[list[Tensor], bool]:  # fmt: skip
        """The scores in a critic's ``output``, and whether somebody named them.

        Args:
            batch, depends: see :func:`~topk_plugin.core.ranking.score_heads`.
            names: of them; none: those of the settings.
        """
        answer = self._answer(output)
        if answer is None:
            names = names or self._heads
            return score_heads(output, batch, names, depends), bool(names)
        heads = [answer] if isinstance(answer, Tensor) else list(answer)
        return heads, True

    def apart(self, output: Any, names: Sequence[str | int] = ()) -> Any:
        """``output``, where what is named is at no other place; see :func:`with_named_apart`."""
        return with_named_apart(output, names or self._heads)

    def names_scores(self, output: Any) -> bool:
        """Whether the settings or a plugin say what of ``output`` are scores."""
        return bool(self._heads) or self._answer(output) is not None

    def _answer(self, output: Any) -> Any:
        return None if self._ask_scores is None else self._ask_scores(output=output)

    def gate(
        self, output: Any, weigh: str, select: Select, follows: bool,
        names: Sequence[str | int] = (),
    ) -> Any:  # fmt: skip
        """``output`` with its scores gated.

        Args:
            names: of them, as in :meth:`heads_of`.
            weigh: see :class:`~topk_plugin.core.score_gate.ScoreGate`.
            follows: its other tensors lose the dropped rows' gradient too.
        """
        if not follows and not names and self._is_known(output):
            return self._gate_known(output, weigh)
        output = self.apart(output, names)
        heads, named = self.heads_of(output, None, names)
        require_whole(heads)
        if not any(head.requires_grad for head in heads):
            return output
        if follows and len(heads) > 1 and not named:
            raise ScoreShapeError(
                f"several outputs are shaped like scores, and other outputs follow their rows, "
                f"which takes one ranking: found{table(output)}\nName those that are scores: "
                "--heads, or TopK(heads=...)."
            )
        batch = _batch_of(heads)
        if not batch and not self.scope.is_shared:  # as where a class has no samples
            return output
        arrived = None
        if is_compiling():
            self.ledger.line_compiled()
        else:
            arrived = self.ledger.line_arrive
            listen(self.ledger)
            self.ledger.calling()
        training = self.trainings.current
        order = ranking_scores(heads, batch, named)
        state, inbox = training.state(order.device), training.counts.inbox
        tensors = heads + companions(output, heads, batch) if follows else heads
        plain, contest = self._is_plain(order), self.scope.contest_of("line")
        if plain or contest is not None:
            ranked: Sorted | Contestant
            if contest is None:
                ranked = Sorted(order, training.progress, training.vote, weigh == "mean", inbox)
            else:
                require_eager(compiled=not plain)
                ranked = Contestant(
                    contest, order.clone(), training.progress, state, weigh == "mean", inbox
                )
            if follows:
                self._latest = SortedFollowed(ranked, training.vote.assumed)
            told, masks = partial(self._arrived, training), weigh != "none"
            gated = SortedGate.apply(ranked, told, len(heads), masks, *tensors)
            return with_replaced(output, tensors, gated)
        order, training.counts.listening = order.clone(), True
        if follows and not is_compiling():
            self._latest = latest = Followed(
                order, state, weigh == "mean", select, inbox, training.vote.assumed
            )
            select = latest.select if select is not kept_rows else select
        gated = ScoreGate.apply(weigh, select, arrived, inbox, len(heads), order, *state, *tensors)
        return with_replaced(output, tensors, gated)

    def _is_known(self, output: Any) -> bool:
        """Whether ``output`` is one score a sample, and the host knows all of how it is ranked."""
        return (
            self.trainings.current.vote.known != 0
            and self.is_score(output)
            and output.requires_grad
            and not self.scope.is_shared
            and self._is_plain(output)
        )

    def is_score(self, output: Any, batch: int | None = None) -> bool:
        """Whether ``output`` is one score for each of ``batch`` samples, and nobody is asked."""
        if not self._is_direct or type(output) is not Tensor or not output.dim():
            return False
        rows = output.shape[0]
        return output.is_floating_point() and 0 < output.numel() == rows == (
            rows if batch is None else batch
        )

    def _gate_known(self, scores: Tensor, weigh: str) -> Tensor:
        """The gate of most steps of most loops, with nothing asked that is answered already."""
        listen(self.ledger)
        if self.ledger.before_call:
            self.ledger.calling()
        training, mean = self.trainings.current, weigh == "mean"

        def rank(rows: Tensor) -> Sorted:
            return Sorted(rows.flatten(), training.progress, training.vote, mean)

        told, masks = partial(self._arrived, training), weigh != "none"
        gated: Tensor = SortedGate.apply(rank, told, 1, masks, scores)[0]
        return gated

    def _is_plain(self, order: Tensor) -> bool:
        """Whether k may be a Python number: what is made into a graph is run for every k."""
        return (
            self.select is kept_rows
            and not is_compiling()
            and not is_capturing(order)
            and not torch._C._are_functorch_transforms_active()
        )

    def ranked(
        self, heads: list[Tensor], batch: int, named: bool, training: Training, mean: bool,
        who: Any = None,
    ) -> AnyRanked:  # fmt: skip
        """What says which rows of a call's ``heads`` are kept.

        Args:
            who: calls, where other ranks' rows may compete; see :meth:`Scope.contest_of`.
        """
        rows = ranking_scores(heads, batch, named)
        contest = None if who is None else self.scope.contest_of(who)
        plain = self._is_plain(rows)
        if plain and contest is None and training.vote.known:
            return Sorted(rows, training.progress, training.vote, mean)
        state = training.state(rows.device)
        if contest is not None:
            require_eager(compiled=not plain)
            return Contestant(contest, rows.clone(), training.progress, state, mean)
        if plain:
            return Sorted(rows, training.progress, training.vote, mean)
        return Ranked(rows.clone(), state, mean, self.select)

    def _arrived(self, training: Training, choice: AnyChoice, first: bool) -> None:
        # a second backward through one gate is of the same rows again
        if isinstance(choice, Choice):
            counted = choice.tally if first else choice.tally[BALLOT]
            (training.counts.inbox if first else training.counts.inbox[BALLOT]).add_(counted)
            training.counts.listening = True
        else:
            training.counts.voted(choice)
            if first:
                training.counts.arrived(choice)
        if first:
            self.ledger.line_arrive(choice)

    def follow(self, output: Any) -> Any:
        """``output``, whose tensors follow the rows of the latest gated call."""
        followed = self._latest
        if followed is None:
            return output
        batch = followed.batch
        training = self.trainings.current
        if not training.progress.begun and not training.vote.assumed:
            _require_direction(training, "follow", batch)
        tensors = companions(output, [], batch)
        if not tensors:
            return output
        return with_replaced(output, tensors, FollowGate.apply(followed, *tensors))

    def gather(self, scores: Tensor, others: tuple[Tensor, ...], paused: bool) -> Any:
        """The kept rows of ``scores`` (B, ...) and of ``others`` (B, ...), in batch order."""
        if self.scope.is_shared:
            raise ConfigError(
                "gather: found other ranks or micro-batches whose rows compete with these, "
                "expected the rows of one batch: what is kept of them has no size that is known. "
                'Use topk(scores), or scope="rank" and no accumulate().'
            )
        batch = _batch_of([scores])
        order = ranking_scores([scores], batch, bool(self._heads))
        for companion in others:
            if companion.shape[:1] != scores.shape[:1]:
                raise ScoreShapeError(
                    f"gather: a companion has shape {tuple(companion.shape)}, expected {batch} "
                    "rows, as many as the scores have"
                )
        if paused:
            return (scores, *others) if others else scores
        if not is_compiling():
            self.ledger.calling()
        training = self.trainings.current
        k, kept, select = k_of(training.progress.fraction, batch), None, self.select
        if k < batch:
            _require_direction(training, "gather", batch)
            low = training.state(order.device).low
            # what the host knows may not be in a graph
            known = training.vote.known if self._is_plain(order) else 0.0
            turn = -known or low.sign()
            if self.select is kept_rows:
                kept = Sort(order, turn).order[:k].sort().values  # in batch order
            else:  # a plugin may keep more or fewer
                mask = self.select(order * -turn, torch.full_like(low, k))
                kept = mask.nonzero().flatten()

                def select(scores: Tensor, k: Tensor) -> Tensor:
                    return mask  # asked once: it may draw at random

        # in front of the selection, so that the loss votes and the dropped rows are counted
        gated = self.gate(scores, "none", select, False) if torch.is_grad_enabled() else scores
        rows = [t if kept is None else t.index_select(0, kept) for t in (gated, *others)]
        return tuple(rows) if others else rows[0]


def _require_direction(training: Training, what: str, batch: int) -> None:
    k = k_of(training.progress.fraction, batch)
    if k < batch and training.vote.unseen:
        raise DirectionUnknown(
            f"{what}: {k} of {batch} rows are to be kept, but no loss has been seen, so which "
            'end is realistic is unknown. Give TopK(direction="high"), or "low" for energies.'
        )


def _batch_of(heads: list[Tensor]) -> int:
    """The batch size of a critic output whose input is not known."""
    # an average beside the scores may be one of them where the batch is one sample
    rows = [head.shape[0] for head in heads if head.dim()]
    if not rows:
        raise ScoreShapeError(
            "the critic's score has shape (): it is averaged inside the critic, or squeezed "
            "from a batch of one; expected one score per sample. Give top-k the scores before "
            "the mean, and squeeze one dimension by name (squeeze(1))."
        )
    return rows[0]
