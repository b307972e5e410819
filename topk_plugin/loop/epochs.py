"""When an epoch ends in a loop that is not ours: told by the DataLoader that feeds it.

The feeding pass is the last pass over a DataLoader to deliver a batch before a generator step. Its
epoch ends when it is exhausted; when it is discarded or reset before that, having fed at least one
generator step (a peek, ``next(iter(loader))``, feeds none); or when it has delivered as many
samples as its data set has, over all ranks that share it, and goes on (an endless sampler). A whole
pass of the same data that only the critic's steps used counts too. Where a loop draws each batch by
a pass of its own, as many of them as a pass has batches are one (:mod:`topk_plugin.loop.draws`).

What is delivered need not be what is trained on:

- Where batches are fetched ahead, an exhausted pass ends with the next delivery, and one that goes
  on as many deliveries later as were fetched ahead.
- A pass that was exhausted before a generator step, and feeds the ones that follow, ends when the
  data are asked for again.
- A loader that is not asked again feeds from batches that the loop keeps: a pass is as many steps
  as the first one had, or as its batches make.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch.optim import Optimizer

from topk_plugin.core.training import Training
from topk_plugin.errors import TopKError
from topk_plugin.hooks import Selection
from topk_plugin.loop.feed import Feed
from topk_plugin.loop.feeds import Feeding
from topk_plugin.loop.kept_batches import StepCount, Steps, length_of_kept
from topk_plugin.loop.named_loader import NamedLoader
from topk_plugin.loop.passes import unwatch, watch
from topk_plugin.topk import TopK


class Fed:
    """What fed one training."""

    def __init__(self) -> None:
        self.feed: Feed | None = None  # its latest generator step
        self.renews = False  # it went on with another pass over the same data
        self.steps = StepCount()
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # that stepped meanwhile
        self.ended: Feed | None = None  # by which its latest epoch ended
        self.ended_at = 0  # deliveries then
        self.early = 0  # passes of its data before it began, not counted
        self.by_steps = ""  # how long its passes are, where steps measure them


class EpochTracker:
    """Ends ``topk``'s epochs by watching DataLoader iterators.

    Args:
        topk: gets ``end_epoch()``, if ``every="epoch"``.
        loader: the DataLoader that counts alone, or one that iterates it, or holds it in its
            attributes; None to go by the feeding rule.
    """

    def __init__(self, topk: TopK, loader: Any = None) -> None:
        self.topk = topk
        self.fed = False  # a generator step was fed by a DataLoader that counts
        self.unfed = 0  # generator steps that none fed, though DataLoaders are to end epochs
        self._named = None if loader is None else NamedLoader(loader)
        self._feeding = Feeding(self._ended, self._exhausted, self._named)
        self._trainings: dict[Training, Fed] = {}
        self._between: Steps = weakref.WeakKeyDictionary()  # since the latest generator step
        self._early: list[Feed] = []  # passes before a training began

    def start(self) -> None:
        """Begin to watch."""
        watch(self._feeding)
        self.topk.observers.append(self._step_counted)
        self.topk.ledger.before_call.append(self._called)
        self.topk.ledger.after_step.append(self._trained)

    def stop(self) -> None:
        """Stop watching; an epoch whose last batch was trained on ends. Twice is fine."""
        unwatch(self._feeding)
        if self._step_counted in self.topk.observers:
            self.topk.observers.remove(self._step_counted)
            self.topk.ledger.before_call.remove(self._called)
            self.topk.ledger.after_step.remove(self._trained)
        try:
            self._feeding.cut_short()
            for training, fed in self._trainings.items():
                if training.progress.pass_complete and fed.feed is not None:
                    self._end_epoch(training, fed.feed)
        except TopKError as error:
            self._feeding.failure = error

    def raise_failure(self) -> None:
        """Raises what an end of an epoch raised where nobody could see it."""
        self._feeding.raise_failure()

    def check(self) -> None:
        """Raises what could not be raised, and NoEffectError for a loader that fed nothing."""
        self.raise_failure()
        if self._named is not None:
            self._named.check()

    @property
    def idle(self) -> bool:
        """A pass ended that trained something, and no generator step has been counted since."""
        return bool(self._early)

    def early_passes(self, training: Training) -> int:
        """Passes over its data before its first generator step that were not counted."""
        early = self._of(training).early - training.progress.caught_up
        return max(0, early) if self._decides(training) else 0

    # --- passes ---------------------------------------------------------------------------------

    def _exhausted(self, feed: Feed) -> None:
        if feed.steps and feed.elsewhere:  # how many of its batches were trained on is not known
            feed.length = length_of_kept(feed.batches, feed.samples, 0)
        elif feed.steps:
            lengths = [self._of(t).steps.total(self._between, t.optimizers) for t in feed.steps]
            feed.length = max(lengths).scaled(feed.batches / (feed.batches - feed.lead))
        for training in feed.steps or self._of_critic(feed) or self._of_warm_up(feed):
            if self._decides(training):
                training.progress.batch_delivered(last=True)

    def _ended(self, feed: Feed) -> None:
        trainings = list(feed.steps) or self._of_critic(feed) or self._of_warm_up(feed)
        if not trainings and feed.trained:
            self._early.append(feed)
        for training in trainings:
            fed = self._of(training)
            other = fed.ended is not None and fed.ended.one.loader is not feed.one.loader
            if other and fed.ended_at > feed.begun:
                # an epoch ended in it, by a loader that stopped feeding
                training.progress.batch_delivered(last=False)
                continue
            self._begin_pass(fed, feed)
            fed.by_steps = ""
            self._end_epoch(training, feed)

    def _of_critic(self, feed: Feed) -> list[Training]:
        """The training of which the critic alone was trained, over its data."""
        training = self.topk.training
        fed = self._of(training)
        mine = fed.feed is not None and fed.feed.is_of(feed)
        return [training] if mine and not fed.optimizers.isdisjoint(feed.optimizers) else []

    def _of_warm_up(self, feed: Feed) -> list[Training]:
        """The training that is to begin, after a pass that trained something without it."""
        config, own = self.topk.config, self._of(self.topk.training).optimizers
        if config.passes != "all" or config.every != "epoch" or not feed.trained:
            return []
        # what the present one's optimizers did over other data is none of its passes
        return [self.topk.trainings.upcoming()] if own.isdisjoint(feed.optimizers) else []

    def _begin_pass(self, fed: Fed, ended: Feed) -> None:
        fed.steps.clear()
        self._between.clear()
        fed.ended, fed.ended_at = ended, ended.latest

    def _end_epoch(self, training: Training, feed: Feed) -> None:
        if self._decides(training):
            told_by = self._of(training).by_steps or feed.told_by
            if others := self._feeding.beside(feed):
                told_by += (
                    f", which deliver last for a step, after another's over {', '.join(others)} "
                    "(--every N counts by steps instead)"
                )
            training.end_epoch(told_by)

    def _decides(self, training: Training) -> bool:
        """Whether it is DataLoaders that end its epochs, not steps or an upstream counter."""
        return self.topk.config.every == "epoch" and not training.progress.counted

    def _of(self, training: Training) -> Fed:
        return self._trainings.setdefault(training, Fed())

    # --- training -------------------------------------------------------------------------------

    def _called(self) -> None:
        """The critic is being called: passes that ended by now have to count for its k."""
        self._feeding.trained_on()

    def _trained(self, optimizer: Optimizer) -> None:
        """An optimizer stepped, and the step is settled."""
        feed = self._feeding.trained_on()
        if feed is None:
            return
        self._feeding.took(feed)
        feed.optimizers.add(optimizer)
        self._between[optimizer] = self._between.get(optimizer, 0) + 1
        for training in list(self._trainings) if feed.exhausted else ():
            self._repeat(training, optimizer)

    def _step_counted(self, step: Selection) -> None:
        training, feed = self.topk.training, self._feeding.for_step()
        if feed is None:
            if self._decides(training):
                self.unfed += 1
                if self._named is not None:
                    self._named.require(self._feeding.another)
            return
        self._feeding.took(feed)
        if feed.kept and feed.length is None:
            rows = step.batch // len(step.calls) if step.calls else 0
            feed.length = length_of_kept(feed.batches, feed.samples, rows)
        fed = self._of(training)
        if fed.feed is not feed:
            self._change(training, fed, feed)
        feed.steps[training] += 1
        self._feeding.step_counted()
        fed.optimizers |= feed.optimizers
        fed.steps.add(self._between, training.optimizers)
        self._between.clear()
        self.fed = True
        if self._decides(training):
            training.progress.batch_delivered(last=self._feeding.is_last(training, feed))
            self._repeat(training)

    def _change(self, training: Training, fed: Fed, feed: Feed) -> None:
        """Another pass feeds ``training`` now."""
        before = fed.feed
        if before is None:
            fed.early = sum(early.is_of(feed) for early in self._early)
            self._early.clear()
        else:
            if not self._feeding.is_pending(before):
                before.steps.pop(training, None)  # what does not feed any more ends no epoch
            fed.renews |= before.exhausted and before.is_of(feed)
        fed.feed = feed
        fed.steps.clear()
        if feed.length is not None and feed.length.others:  # whole passes of the critic alone
            for one, steps in list(self._between.items()):
                self._between[one] = (steps - 1) % feed.length.others + 1

    def _repeat(self, training: Training, optimizer: Optimizer | None = None) -> None:
        """Ends the epoch where a loop that keeps a pass's batches went over them once more."""
        fed = self._trainings[training]
        feed = fed.feed
        if feed is None or feed.length is None or feed is not self._feeding.over:
            return
        if not self._decides(training) or (fed.renews and feed.ended):
            return
        done = fed.steps.reached(feed.length, self._between, training.optimizers)
        if feed.ended or feed.kept:
            training.progress.batch_delivered(last=done.last)
        if fed.renews:
            return  # it asks for the data again, which ends the pass
        if feed.ended or feed.kept:
            fed.by_steps = f"by steps, since the loop keeps a DataLoader's batches: {done.words}"
        if done.over:
            feed.ended = True
            self._begin_pass(fed, feed)
            if optimizer is not None and done.begun:
                self._between[optimizer] = 1
            self._end_epoch(training, feed)
