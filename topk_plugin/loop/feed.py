"""One pass over a DataLoader that may feed the training, as far as it was seen."""

from __future__ import annotations

import weakref
from collections import Counter, deque

from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.core.training import Training
from topk_plugin.loop.kept_batches import Length
from topk_plugin.loop.passes import Pass
from topk_plugin.streams import count

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
        self.drawn = False  # it is many passes, of each of which one batch was taken
        self.length: Length | None = None  # in steps, of one that is exhausted
        self._rounds = self._seen = 0  # trainings on new batches; batches at the latest
        self._recent: deque[weakref.ref[Tensor] | None] = deque(maxlen=AHEAD_LIMIT + 1)
        self._held = 0  # rounds in which the batch that was trained on was still there

    def __str__(self) -> str:
        size = self.one.size
        return "a stream" if size is None else count(size, "sample")

    @property
    def told_by(self) -> str:
        """How its epochs are counted, in words."""
        if self.drawn and self.one.length:
            return f"by batches drawn one at a time, {self.one.length} of {self} a pass"
        return f"by passes of a DataLoader over {self}"

    def is_of(self, other: Feed) -> bool:
        """Whether both are passes over the same data."""
        return self.one.data == other.one.data

    def delivered(self, first: weakref.ref[Tensor] | None) -> None:
        """Of the latest batch, its first tensor."""
        self._recent.append(first)

    def renew(self) -> bool:
        """Another batch is delivered: whether it begins a pass anew after a whole one."""
        if self.drawn and self.one.length:
            if self.batches < self.one.length:
                return False
            self.batches, self.samples = self.batches - self.one.length, 0
        elif self.one.size and self.samples >= self.one.size:
            self.samples -= self.one.size
        else:
            return False
        self.endless = True
        return True

    def split(self, one: Pass, rows: int) -> Feed:
        """Without its latest batch, of so many rows, which is that of the pass ``one`` alone."""
        feed = Feed(one, self.counts)
        feed.batches, feed.samples, feed.begun = 1, rows, self.latest
        if self.batches == self._seen:  # something was trained on it
            feed.round()
        self.batches, self.samples = self.batches - 1, self.samples - rows
        return feed

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
