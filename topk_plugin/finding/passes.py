"""When the first pass over the data is over, before anything is gated."""

from __future__ import annotations

from topk_plugin.core.training import Training
from topk_plugin.loop.feed import Feed
from topk_plugin.loop.feeds import Feeding
from topk_plugin.loop.passes import unwatch, watch

PATIENCE = 100
"""Generator steps that stand for a pass where none over a DataLoader ends."""


class Passes:
    """Of the DataLoader that feeds steps which may turn out to be the generator's.

    Args:
        training: the present one.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._feeding = training, Feeding(self._ended, lambda feed: None, None)
        self._steps, self._at_end = 0, False
        self.ended = 0  # that are over, and nobody could know before
        self.told_by = ""  # how they were counted, in words
        watch(self._feeding)

    @property
    def over(self) -> bool:
        """The first one is over, or gave its last batch."""
        return self._at_end or self.ended > 0 or self._steps >= PATIENCE

    def called(self) -> None:
        """A module that may be a critic is called."""
        self._feeding.trained_on()

    def stepped(self, of_generator: bool) -> None:
        """An optimizer stepped, maybe that of the generator."""
        self._steps += of_generator
        feed = self._feeding.for_step() if of_generator else self._feeding.trained_on()
        if feed is None:
            return
        self._feeding.took(feed)
        if of_generator:
            feed.steps[self._training] += 1
            self._at_end = self._feeding.is_last(self._training, feed)

    def stop(self) -> None:
        """Watch no longer; twice is fine."""
        unwatch(self._feeding)

    def _ended(self, feed: Feed) -> None:
        if feed.steps:
            self.ended += 1
            self.told_by = feed.told_by
