"""Networks that FSDP2 shards compute with whole parameters, and optimizers own the shards.

The whole one is what autograd's graph leads to. Here it is taken for its shard, which is what
everything else knows: the optimizers, ``parameters()`` between the passes, and ``zero_grad()``.
"""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

from torch import Tensor

# the packages of torch that shard, as of 2.6, and before
_HOMES = ("torch.distributed.fsdp._fully_shard", "torch.distributed._composable.fsdp")

# by the id of a whole parameter: itself, and its shard
_shards: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}
_others: dict[int, weakref.ref[Tensor]] = {}  # that are no whole parameter


def anything_is_sharded() -> Any:
    """The package that shards networks of this process, if one does: these have classes of its own.

    Asked before each walk, since looking for whole parameters takes long.
    """
    for name in _HOMES:
        if (home := sys.modules.get(name)) is not None:
            return home if home.FSDPModule.__subclasses__() else None
    return None


def owner_of(leaf: Tensor) -> Tensor:
    """What an optimizer owns of ``leaf``: its shard on this rank, or else itself."""
    home = anything_is_sharded()
    if home is None or _is(_others.get(id(leaf)), leaf):
        return leaf
    if not _known(leaf):
        _look_for(sys.modules[f"{home.__name__}._fsdp_param"].FSDPParam)
        if not _known(leaf):
            _others[id(leaf)] = weakref.ref(leaf)
            return leaf
    shard = _shards[id(leaf)][1]()
    return leaf if shard is None else shard


def _is(reference: Any, tensor: Tensor) -> bool:
    return reference is not None and reference() is tensor


def _known(leaf: Tensor) -> bool:
    return id(leaf) in _shards and _is(_shards[id(leaf)][0], leaf)


def _look_for(kind: type) -> None:
    """All that there are now, by FSDPParam, which knows both.

    A whole parameter is made in a network's first pass, and stays.
    """
    for found in (one for one in gc.get_objects() if issubclass(type(one), kind)):
        whole = vars(found).get("_unsharded_param")
        if whole is not None:
            _shards[id(whole)] = weakref.ref(whole), weakref.ref(found.sharded_param)
