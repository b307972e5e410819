"""Trainings: what one generator's optimizer does is one, with a k, counts and a vote of its own.

A second training in the same process (a loop over seeds or folds, a sweep) has networks and an
optimizer of its own and begins at its own k = B. A new critic that the same optimizer goes on with
makes no new training, nor do optimizers that take others' places; a new critic and a new optimizer
together do, as where progressive growing builds its critic anew for each resolution. Of a loop of
one's own that calls ``topk(scores)`` nothing is guessed: there a training is a TopK, or what an
upstream's counter says.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from topk_plugin.core.choice import BALLOT, GateState
from topk_plugin.core.counts import Counts, Report, StepTally
from topk_plugin.core.direction import Direction
from topk_plugin.core.graph import LiveIds
from topk_plugin.core.parameters import Owned, owned_by
from topk_plugin.core.parts import Parts
from topk_plugin.core.progress import EpochCount
from topk_plugin.core.shielded_gate import Box, PathAudit
from topk_plugin.core.sorted_choice import AnyChoice

MANY = 20
"""Steps of the generator without a gate; a regularizer takes fewer between two that are gated."""


class Training:
    """How far one training is, and what was counted in it.

    Args:
        progress, vote: of it alone.
        epoch_ended: told when one of its epochs ended.
    """

    def __init__(
        self,
        progress: EpochCount,
        vote: Direction,
        epoch_ended: Callable[[EpochCount], None] | None = None,
    ) -> None:
        self.number = 1  # of those of its TopK, from 1
        self.progress, self.vote = progress, vote
        self.counts, self.audit, self.parts = Counts(), PathAudit(), Parts()
        self.critics: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # whose gates were passed
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # that step the generator
        self.parameters = LiveIds()  # that they own
        self.rivals: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # built since, for its networks
        self.heads: list[str] = []  # that share one ranking, where several do
        self.ungated = 0  # steps of its optimizers since the latest one that was gated
        # its loss is differentiated by the samples, whose gradient is sent on by hand
        self.by_samples = False
        self.stops_too = False  # ... besides by the generator, as where it weighs one loss
        self._known = False  # which optimizer steps the generator
        # the latest that did, and what it owned: nearly always the same again
        self._latest: tuple[weakref.ref[Optimizer], Owned] | None = None
        self._epoch_ended = epoch_ended

    @property
    def by_hand(self) -> bool:
        """Its steps were marked, and nobody knows of which optimizer they are."""
        return not self._known

    def take(self, optimizer: Optimizer) -> None:
        """``optimizer`` stepped the generator."""
        owned = owned_by(optimizer)
        if self._latest is not None and self._latest[1] is owned and self.was_latest(optimizer):
            return
        self._known = True
        self.optimizers.add(optimizer)
        self.rivals.discard(optimizer)
        self.parameters.take_owned(owned)
        self._latest = weakref.ref(optimizer), owned

    def was_latest(self, optimizer: Optimizer) -> bool:
        """Whether it stepped the generator last."""
        return self._latest is not None and self._latest[0]() is optimizer

    def end_epoch(self, told_by: str) -> None:
        """One pass over the real data ended: k decays (paper, section 3.2).

        Args:
            told_by: who says so, in words.

        Raises:
            DirectionUnknown: the critic's own steps contradict what the generator's ask for, or
                these ask for both ends.
            GeneratorStepUnknown: see :meth:`PathAudit.check`, and ``require_unmasked``.
        """
        if self.vote.goes_on:
            self.vote.require_agreement(unless_wavering=True)
            self.vote.require_two_losses()
        self.progress.end_epoch(told_by)
        self.parts.decide(last=not self.audit.goes_on)
        if self._epoch_ended is not None:
            self._epoch_ended(self.progress)
        self.audit.check()
        if self.progress.fraction < 1:
            self.audit.require_unmasked()
        self.vote.require_one_end()

    def count(
        self, choices: Sequence[AnyChoice], boxes: Sequence[Box], optimizer: Optimizer | None
    ) -> StepTally:
        """One generator step: it votes, and its statistics are added.

        Args:
            choices: made in its calls of a critic that is attached.
            boxes: of those calls.

        Returns:
            that of the whole step.

        Raises:
            DirectionUnknown: the loss does not say it, and the vote ends here.
        """
        if optimizer is not None:
            self.vote.require_descent(optimizer)
        tally, self.ungated = self.counts.take(choices), 0
        self.progress.step_counted()
        self.audit.settle(boxes)
        if self.vote.goes_on:
            self.vote.vote(tally.ballot, [choice.cast for choice in choices])
        self.counts.add(tally)
        return tally

    @property
    def left(self) -> str:
        """Says that its generator went on without a gate; nothing where it did not."""
        if self.ungated < MANY:
            return ""
        return (
            f"the last {self.ungated} steps of the generator's optimizer, after "
            f"{self.progress.steps} gated ones, had no gradient from a critic that is gated"
        )

    def opposes(self, other: Training) -> bool:
        """Whether both go by the scores of one critic, and each by another end of them, which that
        critic's own steps do not confirm of both (the device is waited for)."""
        if self.critics.isdisjoint(other.critics):
            return False
        sure = self.vote.confirmed and other.vote.confirmed
        return not sure and {self.direction, other.direction} == {"high", "low"}

    @property
    def can_drop(self) -> bool:
        """Whether a row of its batches could ever be dropped, however long it went on."""
        return self.progress.can_drop(self.counts.largest or self.report().last_batch)

    def report(self) -> Report:
        """See TopK.report()."""
        at = self.progress
        return self.counts.report(at.steps, at.epoch, at.fraction, self.direction)

    @property
    def direction(self) -> str:
        """ "high", "low", or "undecided" (the device is waited for)."""
        return self.vote.name(self.counts.inbox[BALLOT])

    def check(self) -> None:
        """See TopK.check()."""
        self.audit.check()
        if self.progress.fraction < 1:
            self.audit.require_unmasked()
        self.vote.check()

    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        saved = {"epoch": self.progress.ended, "steps": self.progress.steps, **self.vote.state()}
        flags = {
            "by_samples": self.by_samples, "stops_too": self.stops_too, "parts": self.parts.found
        }  # fmt: skip
        return saved | {name: True for name, is_so in flags.items() if is_so}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what was :meth:`saved`."""
        self.vote.load(saved)
        self.by_samples = bool(saved.get("by_samples", self.by_samples))
        self.stops_too = bool(saved.get("stops_too", self.stops_too))
        self.parts.found = bool(saved.get("parts", self.parts.found))
        self.progress.begin_at(int(saved["epoch"]), int(saved["steps"]))

    def state(self, device: torch.device) -> GateState:
        """The tensors that gates on ``device`` read; they move there, where they are not."""
        if self.progress.numbers.device != device:
            self.to(device)
        return GateState(self.progress.numbers, self.vote.low)

    def to(self, device: torch.device | str) -> None:
        """Move what the gates read and write."""
        for part in (self.progress, self.vote, self.counts):
            part.to(device)


class Trainings:
    """Those of one TopK, in the order in which they began.

    Args:
        new: makes one; its argument is whether it is the first.
    """

    def __init__(self, new: Callable[[bool], Training]) -> None:
        self._new = new
        self.current = new(True)  # the latest one to count a generator step
        self.all = [self.current]
        self._next: Training | None = None  # its gates are called, and no step of it was counted

    @property
    def steps(self) -> int:
        """Generator steps that were counted in this process."""
        return sum(t.progress.steps - t.progress.first_step for t in self.all)

    @property
    def any_drops(self) -> bool:
        """Whether k < B in any of them."""
        return any(training.progress.fraction < 1 for training in self.all)

    def begin(self) -> Training:
        """The next training begins now, told by an upstream's own counter."""
        return self._enter(self.upcoming())

    def upcoming(self) -> Training:
        """The one that is to begin: the present one, if no step of it was counted."""
        if not self.current.progress.begun:
            return self.current
        if self._next is None:
            self._next = self._new(False)
            self._next.number = len(self.all) + 1
            # what an adapter or an audit said holds for each
            self._next.vote.assumed = self.current.vote.assumed
            self._next.progress.as_told(self.current.progress)
        return self._next

    def of(self, parameters: Set[int], critic: nn.Module) -> Training:
        """The training of a generator, before any optimizer says whose step it is.

        Args:
            parameters: ids of the generator's, upstream of the critic's input.
        """
        for training in reversed(self.all):
            if training.parameters.isdisjoint(parameters):
                continue
            if training.rivals or not training.optimizers:
                mine = parameters & training.parameters
                replaced = not training.optimizers or _own(training.rivals, mine)
                if replaced and critic not in training.critics:
                    continue
            return training
        if self.current.by_hand and self.current.progress.begun:
            return self.current
        return self.upcoming()

    def counted(self, gated: Training, optimizer: Optimizer | None) -> Training:
        """The training of a generator step that ``optimizer`` took, which is the present one now.

        Args:
            gated: whose k its gates went by.
            optimizer: None: it is not known.
        """
        known = self.of_optimizer(optimizer)
        training = known or gated
        if known is not None and known.rivals:
            known.rivals.clear()  # it goes on: what was built since has some other use
        if optimizer is not None:
            training.take(optimizer)
        return self._enter(training)

    def joined(self, optimizer: Optimizer) -> None:
        """Another optimizer took part in the step that was just counted, or one of it steps on."""
        training = self.of_optimizer(optimizer)
        if training is None:
            self.current.take(optimizer)
        else:
            training.ungated += 1

    def of_optimizer(self, optimizer: Optimizer | None) -> Training | None:
        """The one in which ``optimizer`` stepped the generator."""
        if optimizer is None:
            return None
        if self.all[-1].was_latest(optimizer):
            return self.all[-1]
        return next((t for t in reversed(self.all) if optimizer in t.optimizers), None)

    def built(self, optimizer: Optimizer) -> None:
        """An optimizer was built, perhaps for a new training."""
        for training in self.all:
            if training.progress.begun:
                training.rivals.add(optimizer)

    def _enter(self, training: Training) -> Training:
        if training is self._next:
            self.all.append(training)
            self._next = None
        self.current = training
        return training


def _own(optimizers: Iterable[Optimizer], parameters: Set[int]) -> bool:
    """Whether optimizers that are alive own one of ``parameters``, by id."""
    return any(
        id(p) in parameters for o in optimizers for group in o.param_groups for p in group["params"]
    )
