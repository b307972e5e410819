"""When an epoch ends in a loop that is not ours: told by the DataLoader that feeds it.

The feeding iterator is the last DataLoader iterator, of those under way, to deliver a batch before
a generator step. Its epoch ends when it raises StopIteration; when it is discarded or reset before
that, having fed at least one generator step (a peek, ``next(iter(loader))``, feeds none); or when
it has delivered as many samples as its data set has, over all ranks, and goes on (an endless
sampler). A whole pass of the same loader that only critic steps used counts too. A wrapper that
fetches batches ahead may end the epoch one batch early.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

from topk_plugin.core.training import Training
from topk_plugin.errors import TopKError
from topk_plugin.hooks import Selection
from topk_plugin.monkeypatch import ClassPatches
from topk_plugin.topk import TopK


class Feed:
    """One pass of a DataLoader, as far as it has been seen."""

    def __init__(self, loader: DataLoader[Any] | None) -> None:
        self.loader = None if loader is None else weakref.ref(loader)
        self.batches = self.samples = 0
        self.length: int | None = None  # batches of a pass, where that is known
        self.steps: Counter[Training] = Counter()  # generator steps it fed
        self.trained_at = 0  # optimizer steps when it began
        self.ended = False
        self.endless = False  # it went on after a whole pass

    def is_complete(self) -> bool:
        """Whether its last batch was delivered; not known of streams and endless samplers."""
        return self.batches == self.length


class EpochTracker:
    """Ends ``topk``'s epochs by watching DataLoader iterators.

    Args:
        topk: gets ``end_epoch()``, if ``every="epoch"``.
        loader: the only loader that counts; None to go by the feeding rule alone.
    """

    def __init__(self, topk: TopK, loader: DataLoader[Any] | None = None) -> None:
        self.topk, self.loader = topk, loader
        self.fed = False  # a generator step was fed by a DataLoader that counts
        self._open: list[Feed] = []  # passes under way, the one that delivered last at the end
        self._feeders: dict[Training, Feed] = {}  # fed the latest generator step of each
        self._failure: TopKError | None = None  # of an epoch that a discarded iterator ended

    def start(self) -> None:
        """Begin to watch."""
        if not _iterators.holds(_BaseDataLoaderIter):
            _iterators.wrap(_BaseDataLoaderIter)
        _trackers.add(self)
        self.topk.observers.append(self._step_counted)

    def stop(self) -> None:
        """Stop watching; DataLoader's methods are the original ones again after the last stop."""
        _trackers.discard(self)
        if self._step_counted in self.topk.observers:
            self.topk.observers.remove(self._step_counted)
        if not _trackers and _iterators.holds(_BaseDataLoaderIter):
            _iterators.unwrap(_BaseDataLoaderIter)

    def delivered(self, feed: Feed, rows: int, size: int | None) -> None:
        """A batch of ``rows`` samples was delivered, of a data set of ``size``."""
        self.raise_failure()
        if self.loader is not None and (feed.loader is None or feed.loader() is not self.loader):
            return
        if size and feed.samples >= size:  # went on after a whole pass
            self._end(feed)
            feed.samples -= size
            feed.ended, feed.endless = False, True
            feed.steps.clear()
        if not feed.batches:
            feed.trained_at = self.topk.ledger.optimizer_steps
        feed.batches, feed.samples = feed.batches + 1, feed.samples + rows
        self._close(feed)
        self._open.append(feed)

    def finished(self, feed: Feed, exhausted: bool) -> None:
        """A pass was exhausted, or else reset or discarded."""
        if exhausted and not feed.steps and self._fed_critic(feed):
            # a pass so short that it only trained the critic
            self._feeders[self.topk.training], feed.steps[self.topk.training] = feed, 1
        if exhausted or not feed.endless:  # the last, partial pass of an endless one is no epoch
            self._end(feed)
        self._close(feed)  # a peek between a batch and its generator step feeds nothing

    def discarded(self, feed: Feed) -> None:
        """A pass was left early; Python would only print what is raised here."""
        try:
            self.finished(feed, exhausted=False)
        except TopKError as error:
            self._failure = error

    def raise_failure(self) -> None:
        """Raises what an end of an epoch raised where nobody could see it."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _fed_critic(self, feed: Feed) -> bool:
        """Whether a loader that feeds the generator's steps made a pass between two of them."""
        loader = feed.loader() if feed.loader is not None else None
        last = self._feeders.get(self.topk.training)
        feeder = last.loader() if last and last.loader else None
        trained = self.topk.ledger.optimizer_steps > feed.trained_at
        return trained and loader is not None and loader is feeder

    def _close(self, feed: Feed) -> None:
        self._open = [other for other in self._open if other is not feed]

    def _end(self, feed: Feed) -> None:
        fed = [training for training in feed.steps if self._feeders.get(training) is feed]
        if feed.ended or not fed:
            return
        feed.ended = True
        for training in fed:
            if self._decides(training):
                training.end_epoch()

    def _decides(self, training: Training) -> bool:
        """Whether it is DataLoaders that end its epochs, not steps or an upstream counter."""
        return self.topk.config.every == "epoch" and not training.progress.counted

    def _step_counted(self, step: Selection) -> None:
        if self._open:
            training, feed = self.topk.training, self._open[-1]
            self._feeders[training] = feed
            feed.steps[training] += 1
            self.fed = True
            if self._decides(training):
                training.progress.batch_delivered(last=feed.is_complete())


_trackers: weakref.WeakSet[EpochTracker] = weakref.WeakSet()
_feeds: weakref.WeakKeyDictionary[Any, Feed] = weakref.WeakKeyDictionary()


def _creating(create: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(create)
    def __init__(self: Any, loader: DataLoader[Any]) -> None:
        create(self, loader)
        _open(self, loader)

    return __init__


def _advancing(advance: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(advance)
    def __next__(self: Any) -> Any:
        feed = _feeds.get(self) or _open(self, None)
        try:
            batch = advance(self)
        except StopIteration:
            _finish(feed, exhausted=True)
            raise
        rows, size = _rows(self, feed, batch), _size(self)
        for tracker in list(_trackers):
            tracker.delivered(feed, rows, size)
        return batch

    return __next__


def _resetting(reset: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(reset)
    def _reset(self: Any, loader: DataLoader[Any], first_iter: bool = False) -> None:
        reset(self, loader, first_iter)
        if not first_iter:  # a persistent iterator starts its next pass
            if self in _feeds:
                _finish(_feeds[self])
            _open(self, loader)

    return _reset


# the three methods that every DataLoader iterator goes through
_iterators = ClassPatches({"__init__": _creating, "__next__": _advancing, "_reset": _resetting})


def _open(iterator: Any, loader: DataLoader[Any] | None) -> Feed:
    feed = _feeds[iterator] = Feed(loader)
    if iterator._dataset_kind == _DatasetKind.Map:
        with contextlib.suppress(TypeError):  # an endless sampler
            feed.length = len(iterator)
    weakref.finalize(iterator, _discard, feed).atexit = False
    return feed


def _finish(feed: Feed, exhausted: bool = False) -> None:
    for tracker in list(_trackers):
        tracker.finished(feed, exhausted)


def _discard(feed: Feed) -> None:
    for tracker in list(_trackers):
        tracker.discarded(feed)


def _size(iterator: Any) -> int | None:
    """Samples in the data set; None for a stream, whose passes only StopIteration ends."""
    try:
        return len(iterator._dataset)
    except TypeError:
        return None


def _rows(iterator: Any, feed: Feed, batch: Any) -> int:
    """Samples that all ranks together took with this batch."""
    loader = feed.loader() if feed.loader is not None else None
    rows = getattr(loader, "batch_size", None)
    if not iterator._auto_collation and not isinstance(iterator._index_sampler, BatchSampler):
        rows = 1  # items are not batched: the length of the data set counts them
    elif rows is None:  # a batch sampler of the user's
        tensors = (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
        rows = next((len(tensor) for tensor in tensors if tensor.dim()), 1)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return int(rows) * (torch.distributed.get_world_size() if distributed else 1)
