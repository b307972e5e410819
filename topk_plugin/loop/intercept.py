"""``forward`` wrapped once on a class, for the instances that are asked for."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from topk_plugin.monkeypatch import ClassPatches


class Interceptor(Protocol):
    """What stands between a module's callers and its ``forward``."""

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``original(*args, **kwargs)``, with whatever is to be done around it."""


def is_intercepted(module: nn.Module) -> bool:
    """Whether ``module`` is attached."""
    return module in _interceptors


def intercept(module: nn.Module, interceptor: Interceptor) -> Callable[[], None]:
    """Lead the calls of ``module`` through ``interceptor``; the returned function undoes it.

    By its class's ``forward``, or by its own where it has one, as torch.compile's wrapper does.
    """
    _interceptors[module] = interceptor
    cls, reference = type(module), weakref.ref(module)
    own = module.__dict__.get("forward")
    if own is None:
        _forwards.wrap(cls)
    else:
        module.__dict__["forward"] = _OwnForward(own, interceptor)

    def undo() -> None:
        alive = reference()
        if alive is not None:
            del _interceptors[alive]
        if own is None:
            _forwards.unwrap(cls)
        elif alive is not None:
            alive.__dict__["forward"] = own

    return undo


class _OwnForward:
    """Stands in for an instance's own ``forward``; a copy or a pickle holds the original."""

    def __init__(self, own: Callable[..., Any], interceptor: Interceptor) -> None:
        self.own, self.interceptor = own, interceptor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.interceptor.call(self.own, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.own, memo)

    def __reduce__(self) -> Any:
        return _itself, (self.own,)


def _itself(value: Any) -> Any:
    return value


def _gated(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def gated(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        interceptor = _interceptors.get(self)
        if interceptor is None:
            return forward(self, *args, **kwargs)
        return _call_eagerly(interceptor, functools.partial(forward, self), args, kwargs)

    return gated


# in a compiled step the gates and the critic run eagerly, between two graphs
@torch.compiler.disable(reason="top-k cannot be traced here: attach the compiled critic instead")
def _call_eagerly(interceptor: Interceptor, original: Any, args: Any, kwargs: Any) -> Any:
    return interceptor.call(original, args, kwargs)


_interceptors: weakref.WeakKeyDictionary[nn.Module, Interceptor] = weakref.WeakKeyDictionary()

_forwards = ClassPatches({"forward": _gated})
