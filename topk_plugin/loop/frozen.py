"""Parameters that get no gradient from what runs here, nor from what checkpointing runs again.

Activation checkpointing runs a part of the critic a second time, in the backward: as it ran the
first time, or torch finds other tensors than it was promised, and the part's parameters get the
gradient after all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint
from torch import Tensor

from topk_plugin.compat import RECOMPUTING
from topk_plugin.monkeypatch import ClassPatches


class _Here(threading.local):
    """In this thread."""

    def __init__(self) -> None:
        self.parameters: tuple[Tensor, ...] = ()  # that are frozen
        self.checkpointed = 0  # functions so far


_here = _Here()


def learners(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that get a gradient, and may be frozen."""
    return [p for p in parameters if p.requires_grad and p.is_leaf]


@contextmanager
def frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """None of ``parameters``, which are :func:`learners`, gets a gradient from what runs inside."""
    before = _here.parameters
    _here.parameters = (*before, *parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        _here.parameters = before


def checkpointed() -> int:
    """How many functions were checkpointed so far, while anybody watches it."""
    return _here.checkpointed


def _as_now(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which freezes what is frozen now, whenever it runs."""
    parameters = _here.parameters
    _here.checkpointed += 1
    if not parameters:
        return function

    def again(*args: Any, **kwargs: Any) -> Any:
        with frozen(learners(parameters)):
            return function(*args, **kwargs)

    return again


def _recomputing(generator: Callable[..., Any]) -> Callable[..., Any]:
    def recomputes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return generator(_as_now(fn), *args, **kwargs)

    return recomputes


def _recomputing_reentrant(forward: Callable[..., Any]) -> Callable[..., Any]:
    def runs(ctx: Any, run_function: Callable[..., Any], *args: Any) -> Any:
        return forward(ctx, _as_now(run_function), *args)

    return runs


# whichever way a script got hold of torch.utils.checkpoint.checkpoint, it looks these up
_PLACES = (
    (ClassPatches(dict.fromkeys(RECOMPUTING, _recomputing)), torch.utils.checkpoint),
    (ClassPatches({"forward": _recomputing_reentrant}), torch.utils.checkpoint.CheckpointFunction),
)


def watch_checkpointing() -> Callable[[], None]:
    """Let checkpointing freeze what was frozen; the returned function undoes it."""
    for patches, owner in _PLACES:
        patches.wrap(owner)

    def undo() -> None:
        for patches, owner in _PLACES:
            patches.unwrap(owner)

    return undo
