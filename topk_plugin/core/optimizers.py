"""Where torch's optimizers are listened to: their steps, and what ``zero_grad()`` throws away."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from topk_plugin.compat import is_compiling, keep_step_hooks
from topk_plugin.core.ledger import StepLedger
from topk_plugin.errors import TopKError
from topk_plugin.monkeypatch import ClassPatches

# by id, weakly; a WeakSet takes longer than all else at a step of small networks
_ledgers: dict[int, weakref.ref[StepLedger]] = {}
_handles: list[Any] = []

before_step: list[Callable[[Optimizer], None]] = []
"""Told of optimizers that are about to step, while anybody listens; what they raise stops it."""

zeroing: list[Optimizer | nn.Module] = []
"""Those whose ``zero_grad()`` is running, while anybody watches it."""

building: list[Callable[[Optimizer], None]] = []
"""Told of optimizers that are built, while anybody listens."""


def listen(ledger: StepLedger) -> None:
    """Let the optimizers of this process tell ``ledger`` of their steps."""
    key = id(ledger)
    if key not in _ledgers:
        _ledgers[key] = weakref.ref(ledger, lambda _: _ledgers.pop(key, None))
    if not _handles:
        keep_step_hooks()
        _building.wrap(Optimizer)
        _handles.append(register_optimizer_step_pre_hook(_before_step))
        _handles.append(register_optimizer_step_post_hook(_after_step))


def unlisten(ledger: StepLedger) -> None:
    """Undo :func:`listen`."""
    _ledgers.pop(id(ledger), None)
    if not _ledgers and _handles:
        _building.unwrap(Optimizer)
        while _handles:
            _handles.pop().remove()


def _listening() -> list[StepLedger]:
    return [one for known in tuple(_ledgers.values()) if (one := known()) is not None]


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_compiling():  # a step that torch.compile was given
        _outside_its_graph(_enter, optimizer)
    else:
        _enter(optimizer)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_compiling():
        _outside_its_graph(_leave, optimizer)
    else:
        _leave(optimizer)


def _enter(optimizer: Optimizer) -> None:
    step: FrameType | None = sys._getframe(1)
    while step and step.f_globals.get("__name__", "").startswith((__name__, "torch._dynamo.")):
        step = step.f_back  # up to what runs until the step ends
    assert step is not None  # it called us
    for tell in list(before_step):
        tell(optimizer)
    for ledger in _listening():
        ledger.running.enter(optimizer, step)


def _leave(optimizer: Optimizer) -> None:
    for ledger in _listening():
        try:
            ledger.leave(optimizer)
        except TopKError as error:
            ledger.failure = ledger.failure or error
            raise


@torch.compiler.disable
def _outside_its_graph(tell: Callable[[Optimizer], None], optimizer: Optimizer) -> None:
    tell(optimizer)


def _announcing(build: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        for ledger in _listening():
            if ledger.trainings is not None:
                ledger.trainings.built(self)
        for tell in list(building):
            tell(self)

    return __init__


_building = ClassPatches({"__init__": _announcing})


def _telling(zero_grad: Callable[..., None]) -> Callable[..., None]:
    def zero(self: Optimizer | nn.Module, *args: Any, **kwargs: Any) -> None:
        zeroing.append(self)
        try:
            zero_grad(self, *args, **kwargs)
        finally:
            zeroing.pop()
        for ledger in _listening():
            ledger.zeroed(
                self.parameters()
                if isinstance(self, nn.Module)
                else (p for group in self.param_groups for p in group["params"])
            )

    return zero


_zeroing = ClassPatches({"zero_grad": _telling})


def watch_zeroing() -> Callable[[], None]:
    """Let ``zero_grad()`` tell the ledgers what it threw away; the returned function undoes it."""
    classes = (Optimizer, nn.Module)
    for cls in classes:
        _zeroing.wrap(cls)

    def undo() -> None:
        for cls in classes:
            _zeroing.unwrap(cls)

    return undo
