"""The record in the folders that ``torch.distributed.checkpoint`` writes.

They keep tensors and objects by name, and no metadata of a ``state_dict``; loading replaces the
tensors of one that the present run made, with the present run's record in it. So the record is an
object of its own there, which a load without the plugin does not ask for.
"""

from __future__ import annotations

import functools
import io
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
import wrapt

from topk_plugin.compat import CHECKPOINTS
from topk_plugin.errors import ResumeMismatch
from topk_plugin.monkeypatch import ClassPatches
from topk_plugin.topk import TopK

KEY = "topk_plugin"


class Keeper(Protocol):
    """Who goes on from a record."""

    topk: TopK

    def read(self, record: dict[str, Any] | None) -> None:
        """A folder was loaded; None: there is no record in it."""


def watch(keeper: Keeper) -> None:
    """Keep its record in what is saved from now on, and tell it what is loaded."""
    _keepers.add(keeper)
    _watch_imports()
    for name, patches in _PATCHES.items() if CHECKPOINTS else ():
        if name in sys.modules and not patches.holds(sys.modules[name]):
            patches.wrap(sys.modules[name])


def unwatch(keeper: Keeper) -> None:
    """Undo :func:`watch`."""
    _keepers.discard(keeper)
    for name, patches in _PATCHES.items() if not _keepers else ():
        if name in sys.modules and patches.holds(sys.modules[name]):
            patches.unwrap(sys.modules[name])


def _collecting(collect: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """What is to be written, when saving begins; an asynchronous one collects it twice."""

    def with_record(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state_dict = collect(*args, **kwargs)
        topks = {keeper.topk for keeper in _keepers}
        if len(topks) == 1 and KEY not in state_dict:  # of several, nobody knows which is meant
            file = io.BytesIO()
            torch.save(topks.pop().state_dict(), file)
            state_dict = {**state_dict, KEY: file.getvalue()}
        return state_dict

    return with_record


def _loading(load: Callable[..., None]) -> Callable[..., None]:
    def load_with_record(
        state_dict: dict[str, Any], storage_reader: Any, *args: Any, **kwargs: Any
    ) -> None:
        load(state_dict, storage_reader, *args, **kwargs)
        found: dict[str, Any] = {KEY: state_dict.pop(KEY, b"")}  # where all there is was asked for
        if _keepers and not found[KEY] and _has_record(storage_reader):
            # with a planner of its own: the script's may be of one use
            load(found, storage_reader, *args[:3], **kwargs | {"planner": None})
        for keeper in list(_keepers):
            keeper.read(_unpacked(found[KEY]))

    return load_with_record


def _unpacked(blob: Any) -> dict[str, Any] | None:
    """The record that was written as ``blob``; None where it is empty.

    Raises:
        ResumeMismatch: it is something else, a pickle that would run code for one.
    """
    if not blob:
        return None
    try:
        record: dict[str, Any] = torch.load(io.BytesIO(blob), weights_only=True)
    except Exception as error:  # whatever other bytes make of the unpickler
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ResumeMismatch(
            f"the object {KEY!r} of a distributed checkpoint cannot be read ({why}), expected the "
            "record of top-k, which holds numbers and settings alone. Take another checkpoint."
        ) from None
    return record


def _has_record(storage_reader: Any) -> bool:
    try:
        return KEY in storage_reader.read_metadata().state_dict_metadata
    except Exception:  # each rank has metadata of its own: the user is told of --start-epoch
        return False


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()

_FOLDER = "torch.distributed.checkpoint"  # imported when something is first saved or loaded
_PATCHES = {
    f"{_FOLDER}.state_dict_saver": ClassPatches({"_stateful_to_state_dict": _collecting}),
    f"{_FOLDER}.state_dict_loader": ClassPatches({"_load_state_dict": _loading}),
}


@functools.cache  # there is no unregistering
def _watch_imports() -> None:
    for name in _PATCHES if CHECKPOINTS else ():
        wrapt.register_post_import_hook(_imported, name)


def _imported(module: Any) -> None:
    if _keepers and not _PATCHES[module.__name__].holds(module):
        _PATCHES[module.__name__].wrap(module)
