"""Which pass over a DataLoader feeds the training, and when it is over.

The feeding pass is the last one to deliver a batch. An exhausted one goes on feeding where its
batches were fetched ahead or are kept by the loop, until another one delivers and feeds.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from topk_plugin.core.training import Training
from topk_plugin.core.trees import tree_leaves
from topk_plugin.errors import TopKError
from topk_plugin.loop.draws import Draws
from topk_plugin.loop.feed import Feed
from topk_plugin.loop.named_loader import NamedLoader
from topk_plugin.loop.passes import Inbox, Pass

LOOKED_AT = 20
"""Generator steps that show which data feed them; later ones cost nothing."""


class Due:
    """The end of a pass, so many deliveries later."""

    def __init__(self, feed: Feed, left: int) -> None:
        self.feed, self.left = feed, left


class Feeding:
    """The passes that may feed: those under way, and one that was exhausted.

    Args:
        ended: told of each pass that is over, or one after another of an endless one.
        exhausted: told of one that has no batch left, before that.
        named: the loader whose passes count alone, if there is one.
    """

    def __init__(
        self,
        ended: Callable[[Feed], None],
        exhausted: Callable[[Feed], None],
        named: NamedLoader | None,
    ) -> None:
        self._told_ended, self._told_exhausted, self.named = ended, exhausted, named
        self.inbox = Inbox()
        self.failure: TopKError | None = None  # of an epoch that a discarded iterator ended
        self.deliveries = 0
        self.over: Feed | None = None  # exhausted
        self._feeds: dict[Pass, Feed] = {}
        self._open: list[Feed] = []  # under way, the one that delivered last at the end
        self._due: list[Due] = []
        self._draws = Draws()
        self._steps, self._at = 0, 0  # generator steps, and deliveries at the latest
        self._regular: Counter[tuple[int, str]] = Counter()  # those for which data delivered

    # --- what iterators tell, in any thread: see passes.Watcher -----------------------------------

    def delivered(self, one: Pass, batch: Any) -> None:
        """A batch was delivered."""
        tensors = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        first = next(map(weakref.ref, tensors), None)
        self.inbox.note(self._delivered, one, one.rows(batch), first, self.inbox.is_elsewhere)

    def exhausted(self, one: Pass) -> None:
        """No batch is left."""
        self.inbox.note(self._exhausted, one)

    def left(self, one: Pass) -> None:
        """Its iterator was discarded, or begins another pass."""
        try:
            self.inbox.note(self._left, one)
        except TopKError as error:  # Python would only print it
            self.failure = error

    def raise_failure(self) -> None:
        """Raises what an end of an epoch raised where nobody could see it."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _delivered(
        self, one: Pass, rows: int, first: weakref.ref[Tensor] | None, elsewhere: bool
    ) -> None:
        self.raise_failure()
        self.deliveries += 1
        feed = self._feeds.get(one)
        begins = feed is None
        if feed is None:
            feed = self._feeds[one] = self._begun(one, rows)
        else:
            feed = self._alone(one, feed)
        if feed.counts:
            self._count_down(feed)
            if begins:
                self._ask_again(feed)
            if feed.renew():
                self._end_later(feed, feed.lead_across)
        feed.batches, feed.samples = feed.batches + 1, feed.samples + rows
        feed.latest, feed.elsewhere = self.deliveries, elsewhere
        feed.delivered(first)
        self._close(feed)
        self._open.append(feed)

    def _begun(self, one: Pass, rows: int) -> Feed:
        """Of a pass that gives its first batch."""
        drawn = self._draws.begin(one, rows)
        if drawn is not None:
            return drawn
        feed = Feed(one, self.named is None or self.named.delivers(one))
        feed.begun = self.deliveries
        return feed

    def _alone(self, one: Pass, feed: Feed) -> Feed:
        """A pass goes on, or has ended by itself: its feed, which is not that of drawn batches."""
        own = self._draws.undo(one)
        if own is None:
            return feed
        self._feeds[one] = own
        self.cut_short()
        return own

    def cut_short(self) -> None:
        """Ends a pass that was left after its first batch, where no other such one follows."""
        drawn = self._draws.feed
        if drawn is not None and not drawn.endless and drawn.batches == 1:
            self._draws.feed, drawn.drawn = None, False
            self._close(drawn)
            self.end(drawn)

    def _exhausted(self, one: Pass) -> None:
        feed = self._feeds.get(one)
        if feed is None or feed.exhausted:
            return
        feed = self._alone(one, feed)
        feed.exhausted, feed.kept = True, not feed.trained
        self._close(feed)
        if not feed.counts:
            return
        # an evaluation does not take the place of what was trained on; batches that are fetched
        # anew, all before the training, do
        if self.over is None or feed.trained or self.over.kept or not self.over.trained:
            self.over = feed
        self._told_exhausted(feed)
        if feed.steps and not feed.lead:
            self.end(feed)

    def _left(self, one: Pass) -> None:
        feed = self._feeds.pop(one, None)
        if feed is None or feed.exhausted:
            return
        drawn = self._draws.feed
        if feed is drawn:
            return  # the next one goes on with it
        if feed.counts and self._draws.left(feed):
            if drawn is not None:
                self._close(drawn)
            return
        self._close(feed)
        self._due = [due for due in self._due if due.feed is not feed]
        # the last, partial pass of an endless one is no epoch, nor is a peek
        if feed.counts and feed.steps and not feed.endless:
            self.end(feed)

    def _close(self, feed: Feed) -> None:
        if feed in self._open:
            self._open.remove(feed)

    # --- ends ------------------------------------------------------------------------------------

    def _ask_again(self, feed: Feed) -> None:
        """A new pass over the same data ends the one before, at the latest."""
        over = self.over
        if over is None or over.ended or not over.is_of(feed):
            return
        if over.used or not over.lead_across:
            self.end(over)
        else:  # fetched ahead across its end
            feed.follow(over)
            self._end_later(over, over.lead)

    def _end_later(self, feed: Feed, deliveries: int) -> None:
        if deliveries:
            self._due.append(Due(feed, deliveries))
        else:
            self.end(feed)

    def _count_down(self, feed: Feed) -> None:
        for due in [due for due in self._due if due.feed.is_of(feed)]:
            due.left -= 1
            if not due.left:
                self._due.remove(due)
                self.end(due.feed)

    def end(self, feed: Feed) -> None:
        """The pass is over, or one of an endless one; once."""
        if not feed.ended:
            feed.ended = feed.exhausted or not feed.endless
            self._told_ended(feed)
            feed.steps.clear()
            if not feed.ended:
                feed.trained, feed.begun = False, self.deliveries

    def is_pending(self, feed: Feed) -> bool:
        """Whether a pass that delivers no more is still trained on, or its end is due."""
        return (feed.exhausted and not feed.ended) or any(due.feed is feed for due in self._due)

    def is_last(self, training: Training, feed: Feed) -> bool:
        """Whether ``feed`` gave the last batch of an epoch: what is heard next ends it."""
        if feed.exhausted:
            return not (feed.ended or feed.kept)
        due_next = any(due.left == 1 and training in due.feed.steps for due in self._due)
        return due_next or feed.at_end

    # --- what is trained on ----------------------------------------------------------------------

    def trained_on(self) -> Feed | None:
        """The pass whose batch is trained on, if it is one that counts."""
        self.raise_failure()
        self.inbox.read()
        feed, over = self._feeder(), self.over
        if feed is None:
            return None
        due = [due.feed for due in self._due]
        if over is not None and over is not feed and not over.ended and over not in due:
            self.end(over)  # other data took its place
        for one in self._open:
            one.round()
        if feed.exhausted:
            feed.used = True
            feed.round()
        return feed

    def for_step(self) -> Feed | None:
        """The same for a step of the generator, whose batch its loop may not have kept."""
        feed = self.trained_on() or self._draws.for_step()
        if feed is not None and feed not in self._open and not feed.exhausted:
            self._open.append(feed)
        return feed

    def took(self, feed: Feed) -> None:
        """An optimizer stepped on its batch."""
        feed.trained = True
        if self.over is not feed:
            self.over = None

    def step_counted(self) -> None:
        """One of the generator's: the first ones show which data deliver for each."""
        if self._steps == LOOKED_AT:
            return
        fresh = [feed for feed in self._open if feed.counts and feed.latest > self._at]
        self._regular.update({(feed.one.data, str(feed)) for feed in fresh})
        self._steps, self._at = self._steps + 1, self.deliveries

    def beside(self, feed: Feed) -> list[str]:
        """Data of other sizes that deliver for most generator steps, too, in words."""
        regular = [one for one, steps in self._regular.items() if 2 * steps > self._steps > 1]
        return [name for data, name in regular if data != feed.one.data and name != str(feed)]

    @property
    def another(self) -> bool:
        """A pass that does not count is under way."""
        return any(not feed.counts for feed in self._open)

    def _feeder(self) -> Feed | None:
        mine = next((feed for feed in reversed(self._open) if feed.counts), None)
        over = self.over
        if over is None or not self._open:
            return over or mine
        latest = mine or self._open[-1]
        # an evaluation inside a pass feeds nothing; a peek that is kept does not either
        if over.latest > latest.latest and (over.trained or over.is_of(latest)):
            return over
        return mine
