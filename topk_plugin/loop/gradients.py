"""Who reads the gradient of a parameter, who replaces it, and who asks autograd for it.

Optimizers, clipping, scalers and loops that log a norm all ask ``parameter.grad``, and autograd
itself does not. So while anybody watches, ``grad`` is a property of ``torch.nn.Parameter``, in
front of the one that every tensor has. What ``zero_grad()`` reads is used by nobody. Backwards to
certain tensors, ``torch.autograd.grad`` and ``backward(inputs=...)``, are led through an engine
that tells of them, whichever way a script got hold of these functions.

Not seen are tensors that were taken from ``.grad`` before and kept, and what C++ does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Variable

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
        for watcher in _watchers:
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


# --- who asks autograd ----------------------------------------------------------------------------

Ask = Callable[[Sequence[Any], Sequence[Any]], None]

_asked: list[Ask] = []


class _Engine(torch._C._ImperativeEngine):
    """Autograd's, which has no state of its own."""

    def run_backward(
        self, roots: Any, gradients: Any, keep: Any, create: Any, inputs: Any = (), *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        for tell in list(_asked) if inputs else ():
            tell(roots, inputs)
        return super().run_backward(roots, gradients, keep, create, inputs, *args, **kwargs)


_engine = _Engine()
_present: list[Any] = []  # what it stands in for


def watch_asking(ask: Ask) -> Callable[[], None]:
    """Tell ``ask`` of backwards to certain tensors, before they run.

    Args:
        ask: given where one begins, tensors or places in the graph, and whose gradients it forms.

    Returns:
        what undoes it; twice is fine.
    """
    if not _asked:
        _present.append(vars(Variable)["_execution_engine"])
        Variable._execution_engine = _engine
    _asked.append(ask)

    def undo() -> None:
        if ask in _asked:
            _asked.remove(ask)
            if not _asked:
                before = _present.pop()
                if vars(Variable)["_execution_engine"] is _engine:
                    Variable._execution_engine = before

    return undo
