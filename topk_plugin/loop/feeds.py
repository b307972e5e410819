"""Which pass over a DataLoader feeds the training, and when it is over.

The feeding pass is the last one to deliver a batch. An exhausted one goes on feeding where its
batches were fetched ahead or are kept by the loop, until another one delivers and feeds.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.core.training import Training
from topk_plugin.core.trees import tree_leaves
from topk_plugin.errors import TopKError
from topk_plugin.loop.kept_batches import Length
from topk_plugin.loop.named_loader import NamedLoader
from topk_plugin.loop.passes import Inbox, Pass
from topk_plugin.streams import count

LOOKED_AT = 20
"""Generator steps that show which data feed them; later ones cost nothing."""

AHEAD_LIMIT = 64
"""Batches that a wrapper may fetch ahead; a loop that draws more of them first skips them."""


class Feed:
    """What is known of one pass, as far as it was seen.

    Args:
        counts: its end may end an epoch.
    """

    def __init__(self, one: Pass, counts: bool) -> None:
        self.one, self.counts = one, counts
        self.batches = self.samples = 0
        self.begun = self.latest = 0  # deliveries of all passes when it began, and at its latest
        # batches that had been fetched before the one that was trained on; None: none was yet
        self.ahead: int | None = None
        self.elsewhere = False  # another thread than the one that trains iterates it
        self.steps: Counter[Training] = Counter()  # generator steps fed, no epoch ended since
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # that stepped in it
        self.trained = False  # an optimizer stepped
        self.exhausted = self.ended = False
        self.used = False  # trained on after it was exhausted
        self.kept = False  # nothing was trained before it was exhausted
        self.endless = False  # it went on after a whole pass
        self.length: Length | None = None  # in steps, of one that is exhausted
        self._rounds = self._seen = 0  # trainings on new batches; batches at the latest
        self._recent: deque[weakref.ref[Tensor] | None] = deque(maxlen=AHEAD_LIMIT + 1)
        self._held = 0  # rounds in which the batch that was trained on was still there

    def __str__(self) -> str:
        size = self.one.size
        return "a stream" if size is None else count(size, "sample")

    def is_of(self, other: Feed) -> bool:
        """Whether both are passes over the same data."""
        return self.one.data == other.one.data

    def delivered(self, first: weakref.ref[Tensor] | None) -> None:
        """Of the latest batch, its first tensor."""
        self._recent.append(first)

    def follow(self, before: Feed) -> None:
        """Its first batches were fetched while the last ones of ``before`` were trained on."""
        self.ahead = before.ahead
        self._recent.extend(before._recent)

    def round(self) -> None:
        """Something is trained."""
        if self.ahead is None:
            self.ahead = self.batches - 1 if self.batches <= AHEAD_LIMIT else 0
        if self.batches != self._seen:
            self._rounds += 1
            trained_on = self._recent[-1 - self.ahead] if self.ahead < len(self._recent) else None
            self._held += trained_on is not None and trained_on() is not None
        self._seen = self.batches

    @property
    def lead(self) -> int:
        """Batches that are fetched ahead.

        In another thread one at least, however many it had fetched when the training began. None
        where a loop draws several for each round of training, so that it has fewer rounds.
        """
        ahead = self.ahead or 0
        if self.elsewhere:
            return max(1, ahead)
        return ahead if 4 * self._rounds >= 3 * (self.batches - ahead) else 0

    @property
    def lead_across(self) -> int:
        """The same where the data go on without an end.

        There a loop that drew its first batches for something else (images to look at) looks just
        like one that fetches as many ahead, but for what it holds: the latter still has the batch
        that it trains on. (Of batches that are copied to a device that is not seen.)
        """
        return self.lead if self.elsewhere or 4 * self._held >= 3 * self._rounds else 0

    @property
    def at_end(self) -> bool:
        """All batches of a pass were delivered; of one that goes on, the last was trained on."""
        size = self.one.size
        whole = size is not None and 0 < size <= self.samples
        return self.batches == self.one.length or (whole and not self.lead_across)


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
        if feed is None:
            counts = self.named is None or self.named.delivers(one)
            feed = self._feeds[one] = Feed(one, counts)
            feed.begun = self.deliveries
        if feed.counts:
            self._count_down(feed)
            if not feed.batches:
                self._ask_again(feed)
            if one.size and feed.samples >= one.size:  # it goes on after a whole pass
                feed.samples -= one.size
                feed.endless = True
                self._end_later(feed, feed.lead_across)
        feed.batches, feed.samples = feed.batches + 1, feed.samples + rows
        feed.latest, feed.elsewhere = self.deliveries, elsewhere
        feed.delivered(first)
        self._close(feed)
        self._open.append(feed)

    def _exhausted(self, one: Pass) -> None:
        feed = self._feeds.get(one)
        if feed is None or feed.exhausted:
            return
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
