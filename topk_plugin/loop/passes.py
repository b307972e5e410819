"""Passes over DataLoaders in a loop that is not ours, as their iterators show them."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

from topk_plugin.core.trees import tree_leaves
from topk_plugin.monkeypatch import ClassPatches


class Pass:
    """One pass over a DataLoader: what is known of it when it begins.

    Args:
        iterator: of the DataLoader.
        loader: None where the pass began before anybody watched.
    """

    def __init__(self, iterator: Any, loader: DataLoader[Any] | None) -> None:
        self.loader = None if loader is None else weakref.ref(loader)
        self.data = id(iterator._dataset)
        self.size = length_of(iterator._dataset)  # samples; None for a stream
        # batches, where that is known: not of streams and endless samplers
        mapped = iterator._dataset_kind == _DatasetKind.Map
        self.length = length_of(iterator) if mapped else None
        sampler = iterator._index_sampler
        self._ranks = ranks_of(sampler)
        # items that are not batched: the length of the data set counts them
        single = not iterator._auto_collation and not isinstance(sampler, BatchSampler)
        self._rows: int | None = 1 if single else getattr(loader, "batch_size", None)

    def rows(self, batch: Any) -> int:
        """Samples that were taken with ``batch``, by all ranks that share the data set."""
        rows = self._rows
        if rows is None:  # a batch sampler of the user's
            tensors = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
            rows = next((len(tensor) for tensor in tensors if tensor.dim()), 1)
        return int(rows) * self._ranks


class Watcher(Protocol):
    """Who is told of all passes in this process, in whatever thread they are made."""

    def delivered(self, one: Pass, batch: Any) -> None:
        """A batch was delivered."""

    def exhausted(self, one: Pass) -> None:
        """No batch is left; told again if one is asked for again."""

    def left(self, one: Pass) -> None:
        """Its iterator was discarded, exhausted or not, or begins another pass."""


class Inbox:
    """What a watcher is told, taken note of in the thread that trains.

    Loaders may be iterated by other threads, which fetch batches ahead. What they do is taken note
    of when something is trained, so that no epoch ends in the middle of a step.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._thread, self._reading = threading.get_ident(), threading.Lock()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is another thread."""
        return threading.get_ident() != self._thread

    def note(self, event: Callable[..., None], *told: Any) -> None:
        """Something happened: ``event(*told)`` is called, now or in the thread that reads."""
        self._events.append((event, told))
        if not self.is_elsewhere:
            self.read()

    def read(self) -> None:
        """In the thread that trains: what happened since."""
        self._thread = threading.get_ident()
        if not self._events or not self._reading.acquire(blocking=False):
            return
        try:
            while self._events:
                event, told = self._events.popleft()
                event(*told)
        finally:
            self._reading.release()


def watch(watcher: Watcher) -> None:
    """Tell ``watcher`` of passes from now on, also of those under way."""
    if not _iterators.holds(_BaseDataLoaderIter):
        _iterators.wrap(_BaseDataLoaderIter)
    _watchers.add(watcher)


def unwatch(watcher: Watcher) -> None:
    """Undo :func:`watch`; after the last one DataLoader's methods are the original ones again."""
    _watchers.discard(watcher)
    if not _watchers and _iterators.holds(_BaseDataLoaderIter):
        _iterators.unwrap(_BaseDataLoaderIter)


def ranks_of(sampler: Any, depth: int = 4) -> int:
    """Over how many ranks a sampler splits its data set, as it or a sampler in it says."""
    for name in ("num_replicas", "world_size", "num_processes", "num_shards"):
        for attribute in (name, f"_{name}"):
            number = getattr(sampler, attribute, None)
            if isinstance(number, int) and number > 1:
                return number
    inner = [value for name, value in _attributes(sampler).items() if "sampler" in name]
    return max((ranks_of(one, depth - 1) for one in inner if depth), default=1)


def loaders_in(holder: Any, depth: int = 6) -> Iterator[DataLoader[Any]]:
    """The DataLoader that ``holder`` is, and those that it holds: in attributes, lists, dicts."""
    if isinstance(holder, DataLoader):
        yield holder
    if not depth or isinstance(holder, Tensor | nn.Module | Dataset | Sampler | type):
        return
    if isinstance(holder, list | tuple):
        held = holder[:100]
    else:
        held = list((holder if isinstance(holder, dict) else _attributes(holder)).values())[:100]
    for one in held:
        yield from loaders_in(one, depth - 1)


def _attributes(thing: Any) -> dict[str, Any]:
    return getattr(thing, "__dict__", None) or {}


def length_of(sized: Any) -> int | None:
    """Its length, if it has one."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
# the present pass of each iterator; in a list, since persistent workers have one after another
_passes: weakref.WeakKeyDictionary[Any, list[Pass]] = weakref.WeakKeyDictionary()


def _creating(create: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(create)
    def __init__(self: Any, loader: DataLoader[Any]) -> None:
        create(self, loader)
        _begin(self, loader)

    return __init__


def _advancing(advance: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(advance)
    def __next__(self: Any) -> Any:
        present = _passes.get(self) or _begin(self, None)
        try:
            batch = advance(self)
        except StopIteration:
            for watcher in list(_watchers):
                watcher.exhausted(present[0])
            raise
        for watcher in list(_watchers):
            watcher.delivered(present[0], batch)
        return batch

    return __next__


def _resetting(reset: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(reset)
    def _reset(self: Any, loader: DataLoader[Any], first_iter: bool = False) -> None:
        reset(self, loader, first_iter)
        if not first_iter:  # a persistent iterator starts its next pass
            if self in _passes:
                _leave(_passes[self])
            _begin(self, loader)

    return _reset


# the three methods that every DataLoader iterator goes through
_iterators = ClassPatches({"__init__": _creating, "__next__": _advancing, "_reset": _resetting})


def _begin(iterator: Any, loader: DataLoader[Any] | None) -> list[Pass]:
    present = _passes.get(iterator)
    if present is None:
        present = _passes[iterator] = []
        weakref.finalize(iterator, _leave, present).atexit = False
    present[:] = [Pass(iterator, loader)]
    return present


def _leave(present: list[Pass]) -> None:
    for watcher in list(_watchers):
        watcher.left(present[0])
