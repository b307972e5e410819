"""find(): the critics of a loop of one's own, which nobody names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from topk_plugin.core.optimizers import listen, unlisten
from topk_plugin.errors import ConfigError
from topk_plugin.finding.finder import Finder
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.loop.passes import loaders_in
from topk_plugin.topk import TopK


@contextmanager
def find(topk: TopK, loader: Any = None) -> Iterator[Finder]:
    """Gate the critics of what is trained inside, which are found in its first steps.

    What :func:`topk_plugin.attach` does for a critic that is given. The critics are the modules
    that score what another optimizer's parameters made, and whose own optimizer opposes that; see
    :mod:`topk_plugin.finding.rules`. While k = B nothing is lost by looking. What was found stands
    in ``found`` of what the context gives.

    Args:
        topk: settings, schedule and statistics.
        loader: the torch DataLoader of the real data, whose passes end the epochs, or what wraps
            it; without it call ``topk.end_epoch()``.

    Raises:
        ConfigError: the loader is no DataLoader and holds none; or, from an optimizer's step,
            k < B from the first step, and the critic has to be attached by hand.
        NoEffectError: from an optimizer's step when the first pass over the data ends, or at the
            end: no critic was found.
    """
    if not isinstance(topk, TopK):
        raise ConfigError(f"find: found a {type(topk).__name__} as topk, expected a TopK")
    if loader is not None and next(loaders_in(loader), None) is None:
        raise ConfigError(
            f"find: found a {type(loader).__name__} as the loader, expected a torch DataLoader, or "
            "an object that has one among its attributes. Leave it out and call topk.end_epoch() "
            "after each pass."
        )
    finder = Finder(topk)
    tracker = None if loader is None else EpochTracker(topk, loader)
    listen(topk.ledger)
    try:
        finder.start()
        if tracker is not None:
            tracker.start()
        yield finder
        if tracker is not None:
            tracker.stop()
            tracker.check()
        topk.check()
        if topk.ledger.optimizer_steps and not finder.found:
            raise finder.nothing()
    finally:
        if tracker is not None:
            tracker.stop()
        finder.stop()
        unlisten(topk.ledger)
