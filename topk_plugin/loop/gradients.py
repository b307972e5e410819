"""Who reads the gradient of a parameter, and who replaces it.

Optimizers, clipping, scalers and loops that log a norm all ask ``parameter.grad``, and autograd
itself does not. So while anybody watches, ``grad`` is a property of ``torch.nn.Parameter``, in
front of the one that every tensor has. What ``zero_grad()`` reads is used by nobody.

Not seen are tensors that were taken from ``.grad`` before and kept, and what C++ does with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from topk_plugin.core.optimizers import zeroing
from topk_plugin.core.parameters import GRADIENT


class Watcher(Protocol):
    """Told of all parameters, in the order in which they are asked."""

    def read(self, parameter: Tensor) -> None:
        """``parameter.grad`` is about to be given to somebody."""

    def replaced(self, parameter: Tensor) -> None:
        """``parameter.grad = ...``, or ``del``: what was there is gone."""


_watchers: list[Watcher] = []


def _read(self: Tensor) -> Any:
    if not zeroing:
        for watcher in list(_watchers):  # one may stop
            watcher.read(self)
    return GRADIENT.__get__(self)


def _write(self: Tensor, gradient: Tensor | None) -> None:
    GRADIENT.__set__(self, gradient)
    if not zeroing:
        for watcher in _watchers:
            watcher.replaced(self)


def _delete(self: Tensor) -> None:
    GRADIENT.__delete__(self)
    if not zeroing:
        for watcher in _watchers:
            watcher.replaced(self)


_property = property(_read, _write, _delete)


def watch_gradients(watcher: Watcher) -> Callable[[], None]:
    """Tell ``watcher``; the returned function undoes it, and twice is fine."""
    if not _watchers:
        nn.Parameter.grad = _property  # type: ignore[assignment]
    _watchers.append(watcher)

    def undo() -> None:
        if watcher in _watchers:
            _watchers.remove(watcher)
            if not _watchers and vars(nn.Parameter).get("grad") is _property:
                del nn.Parameter.grad

    return undo
