"""Batches that a loop draws one at a time, each by a pass that it leaves: ``next(iter(loader))``.

One such pass is no epoch: as many of them are as a pass has batches. One alone is a peek if it fed
no generator step, and a pass that was cut short if it did.
"""

from __future__ import annotations

from topk_plugin.loop.feed import Feed
from topk_plugin.loop.passes import Pass


class Draws:
    """Passes that were left after one batch of several; those over the same data are one feed."""

    def __init__(self) -> None:
        self.feed: Feed | None = None  # what they are, once one of them fed the training
        self._unfed: Feed | None = None  # since the latest generator step that nothing fed
        self._unfed_before: Feed | None = None  # and since the one before that
        self._rows = 0  # of the latest batch
        self._single: Pass | None = None  # the latest pass, which gave it

    def begin(self, one: Pass, rows: int) -> Feed | None:
        """A pass gives its first batch, of so many rows: the feed that goes on with it."""
        if self.feed is None or self.feed.one.data != one.data:
            return None
        self._single, self._rows = one, rows
        return self.feed

    def undo(self, one: Pass) -> Feed | None:
        """A pass gives its second batch: it is none of these.

        Returns:
            a feed of its own, which has its first batch; None if that is what it had.
        """
        if one is not self._single or self.feed is None:
            return None
        self._single = None
        return self.feed.split(one, self._rows)

    def left(self, feed: Feed) -> bool:
        """A pass was left that no other one had joined; whether it begins these."""
        if feed.batches != 1:
            return False
        earlier, self._unfed = self._unfed, feed
        if earlier is not None and earlier.is_of(feed) and earlier.trained == feed.trained:
            feed.batches += earlier.batches
            feed.samples += earlier.samples
        if not feed.steps or feed.one.length == 1:
            return False
        self._adopt(feed)
        return True

    def for_step(self) -> Feed | None:
        """A generator step was fed by nothing that is under way: the feed of what was drawn for it.

        The first one may have had other batches drawn before it, to look at: it takes two.
        """
        before, feed = self._unfed_before, self._unfed
        self._unfed_before, self._unfed = feed, None
        if feed is None or before is None or not feed.is_of(before):
            return None
        feed.batches, feed.samples = 2 * feed.batches, 2 * feed.samples
        feed.begun, feed.ahead = before.begun, 0
        self._adopt(feed)
        return feed

    def _adopt(self, feed: Feed) -> None:
        self.feed, self._unfed, self._unfed_before = feed, None, None
        feed.drawn = True
