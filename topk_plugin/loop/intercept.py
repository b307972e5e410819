"""``forward`` wrapped once on a class, for the instances that are asked for.

What torch.compile makes of such an instance is called through the same interceptor, from outside,
and its graph is that of the original ``forward``. Scripting and FX see the original alone.
"""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from topk_plugin.compat import (
    EXPORTS,
    is_compiling,
    not_compiled,
    trace_forward,
)
from topk_plugin.loop.traced import CANNOT_BE_TRACED, is_as_plain, something_is_compiled, traced
from topk_plugin.monkeypatch import ClassPatches


class Interceptor(Protocol):
    """What stands between a module's callers and its ``forward``."""

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``original(*args, **kwargs)``, with whatever is to be done around it."""


def is_intercepted(module: nn.Module) -> bool:
    """Whether ``module`` is attached."""
    return id(module) in _interceptions


def interceptor_of(module: nn.Module) -> Interceptor | None:
    """Through what the calls of ``module`` are led."""
    interception = _interceptions.get(id(module))
    return None if interception is None else interception.interceptor


def intercept(
    module: nn.Module, interceptor: Interceptor, compiles: bool = True
) -> Callable[[], None]:
    """Lead the calls of ``module`` through ``interceptor``; the returned function undoes it.

    By its class's ``forward``, or by its own where it has one, as torch.compile's wrapper does.

    Args:
        compiles: what torch.compile makes of the module is led there too, as a whole; else its
            calls stand between two graphs.
    """
    return _Interception(module, interceptor, compiles).undo


class _Interception:
    """Of one module, until ``undo()``."""

    def __init__(self, module: nn.Module, interceptor: Interceptor, compiles: bool) -> None:
        self.interceptor, self.compiles, self._key = interceptor, compiles, id(module)
        self.stand_ins: dict[str, _StandIn] = {}  # in the module's own __dict__
        self._module = weakref.ref(module, self._forget)
        self._undo = ExitStack()
        for patches, owner in _AROUND:
            self.wrap(patches, owner)
        _interceptions[self._key] = self
        self._undo.callback(trace_forward(module))
        if "forward" in module.__dict__:
            self.stand_in("forward")
        else:
            self.wrap(_forwards, type(module))
        self.compiled_in_place()

    def wrap(self, patches: ClassPatches, owner: Any) -> None:
        """Patch a class or module until the end."""
        patches.wrap(owner)
        self._undo.callback(patches.unwrap, owner)

    def compiled_in_place(self) -> None:
        """Stand before what ``module.compile()`` made, if it was called."""
        module = self._module()
        made = module is not None and module.__dict__.get("_compiled_call_impl")
        if isinstance(made, _Shown):
            made = module.__dict__["_compiled_call_impl"] = made.own
        if self.compiles and made and not isinstance(made, _StandIn):
            self.stand_in("_compiled_call_impl")

    def compiled(self, wrapper: nn.Module) -> None:
        """torch.compile made ``wrapper`` of the module."""
        if self.compiles and not is_intercepted(wrapper):
            self._undo.callback(intercept(wrapper, self.interceptor))

    def stand_in(self, name: str) -> None:
        module = self._module()
        assert module is not None  # it is being built
        self.stand_ins[name] = module.__dict__[name] = _StandIn(
            module.__dict__[name], self.interceptor
        )

    def put(self, original: bool) -> None:
        """Put the originals back in the module's ``__dict__``, or ours again."""
        module = self._module()
        for name, ours in self.stand_ins.items():
            before, after = (ours, ours.own) if original else (ours.own, ours)
            if module is not None and module.__dict__.get(name) is before:
                module.__dict__[name] = after

    def undo(self) -> None:
        if _interceptions.get(self._key) is self:
            del _interceptions[self._key]
        self.put(original=True)
        self.stand_ins.clear()
        self._undo.close()

    def _forget(self, _: object) -> None:
        if _interceptions.get(self._key) is self:
            del _interceptions[self._key]


class _StandIn:
    """Stands in for a function of an instance's own; a copy or a pickle holds the original."""

    def __init__(self, own: Callable[..., Any], interceptor: Interceptor) -> None:
        self.own, self.interceptor = own, interceptor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() and (traced.a_critic or is_as_plain(args, kwargs)):
            return self.own(*args, **kwargs)
        return _call_eagerly(self.interceptor, self.own, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.own, memo)

    def __reduce__(self) -> Any:
        return _itself, (self.own,)


class _Shown(_StandIn):
    """Stands in for what ``module.compile()`` made, while calls are watched."""

    def __init__(self, module: nn.Module, own: Callable[..., Any]) -> None:
        super().__init__(own, self)
        self.module = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.own(*args, **kwargs) if is_compiling() else self.call(self.own, args, kwargs)

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        module = self.module()
        if not _watches or module is None:
            return original(*args, **kwargs)
        return _watches[-1].see(module, original, args, kwargs)


def _itself(value: Any) -> Any:
    return value


def _gated(forward: Callable[..., Any]) -> Callable[..., Any]:
    def gated(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # in a graph these are constants, with guards: the identity of the module, too
        if is_compiling() and (
            traced.a_critic or id(self) not in _interceptions or is_as_plain(args, kwargs)
        ):
            return forward(self, *args, **kwargs)
        if not is_compiling() and torch._C._get_tracing_state() is not None:
            return forward(self, *args, **kwargs)  # torch.jit.trace: no step of a training
        interception = _interceptions.get(id(self))
        if interception is not None:
            bound = functools.partial(forward, self)
            return _call_eagerly(interception.interceptor, bound, args, kwargs)
        if _watches and not is_compiling() and _watches[-1].shows(type(self)):
            return _watches[-1].see(self, functools.partial(forward, self), args, kwargs)
        return forward(self, *args, **kwargs)

    # torch.compile keeps what it compiled, and counts how often, by code: each class has its own
    gated.__code__ = gated.__code__.replace(co_name="forward")
    return gated


# in a compiled step the gates and the critic run eagerly, between two graphs
@not_compiled(CANNOT_BE_TRACED)
def _call_eagerly(interceptor: Interceptor, original: Any, args: Any, kwargs: Any) -> Any:
    return interceptor.call(original, args, kwargs)


_interceptions: dict[int, _Interception] = {}  # by the module's id, of those that are alive

_forwards = ClassPatches({"forward": _gated})


# --- while anything is intercepted --------------------------------------------------------------


@contextmanager
def _suspended() -> Iterator[None]:
    """Modules and classes are as they were, for the time being."""
    with _forwards.suspended():
        present = list(_interceptions.values())
        for interception in present:
            interception.put(original=True)
        try:
            yield
        finally:
            for interception in present:
                interception.put(original=False)


def _reading_sources(function: Callable[..., Any]) -> Callable[..., Any]:
    """What reads the source or the globals of ``forward`` has to find the original."""

    def read(*args: Any, **kwargs: Any) -> Any:
        with _suspended():
            return function(*args, **kwargs)

    return read


def _compiling_in_place(compile: Callable[..., None]) -> Callable[..., None]:
    def compile_(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        compile(self, *args, **kwargs)
        interception = _interceptions.get(id(self))
        if interception is not None:
            interception.compiled_in_place()
        elif _watches:
            _watches[-1].compiled_in_place(self)

    return compile_


def _compiling(build: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        module = self._orig_mod
        # what this one hooks may lie inside the graph
        while isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        interception = _interceptions.get(id(module))
        if interception is not None:
            interception.compiled(self)

    return __init__


def _exporting(export: Callable[..., Any]) -> Callable[..., Any]:
    """Nothing that is traced says that it is exported, so it finds the originals."""

    def export_(*args: Any, **kwargs: Any) -> Any:
        made = _reading_sources(export)(*args, **kwargs)
        return _reading_sources(made) if callable(made) else made

    return export_


# every way of scripting and tracing a module goes through the first, every compiled module through
# the last, also where a script holds an alias of torch.jit.script or torch.compile
_AROUND: tuple[tuple[ClassPatches, Any], ...] = (
    (ClassPatches({"create_script_module": _reading_sources}), torch.jit._recursive),
    (ClassPatches({"trace": _reading_sources}), torch.fx.Tracer),
    (ClassPatches({"compile": _compiling_in_place}), nn.Module),
    (ClassPatches({"__init__": _compiling}), OptimizedModule),
    *(() if EXPORTS else ((ClassPatches({"export": _exporting}), torch._dynamo),)),
)


# --- while critics are looked for ---------------------------------------------------------------

See = Callable[[nn.Module, Callable[..., Any], Any, Any], Any]


class Watch:
    """Shows calls of modules that are not attached, from ``start()`` to ``stop()``.

    Args:
        see: is given the module, what to call with the arguments, and these; its result is the
            call's. Calls inside a compiled graph are not shown, that of the graph is.
    """

    def __init__(self, see: See) -> None:
        self.see = see
        self._classes: set[type] = set()
        self._shown: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._undo = ExitStack()
        self._only: Set[type] | None = None

    def start(self) -> None:
        """Show them, also of modules that are built from now on."""
        if self in _watches:
            _watches.remove(self)
        _watches.append(self)
        self._only = None
        if not self._classes:
            for patches, owner in (*_AROUND[:3], (_calls, OptimizedModule), (_builds, nn.Module)):
                patches.wrap(owner)
                self._undo.callback(patches.unwrap, owner)
        for one in gc.get_objects():
            # by type: isinstance asks lazy objects for their class, and some warn
            if issubclass(type(one), nn.Module):
                self.take(type(one))
                self.compiled_in_place(one)

    def take(self, cls: type[nn.Module]) -> None:
        """Show the calls of modules of that class."""
        if (
            self._only is not None
            or cls in self._classes
            or issubclass(cls, torch.jit.ScriptModule | OptimizedModule)
        ):
            return
        if cls.__module__.startswith("torch.") and not issubclass(cls, _WATCHED):
            return  # activations, normalisations: none of them is a network
        self._classes.add(cls)
        _forwards.wrap(cls)
        self._undo.callback(_forwards.unwrap, cls)

    def compiled_in_place(self, module: nn.Module) -> None:
        """Show the calls of what ``module.compile()`` made."""
        made = module.__dict__.get("_compiled_call_impl")
        if made and self._only is None and not isinstance(made, _StandIn):
            module.__dict__["_compiled_call_impl"] = _Shown(module, made)
            self._shown.add(module)

    def shows(self, cls: type) -> bool:
        """Whether calls of modules of that class are shown."""
        return self._only is None or cls in self._only

    def narrow(self, only: Set[type]) -> None:
        """Show from now on modules of the classes ``only`` alone, of which others are attached;
        what torch.compile would have to make anew for it stays as it is."""
        self._only = only
        if not something_is_compiled():
            self._put_back()

    def stop(self) -> None:
        """Put everything back as it was; twice is fine."""
        if self in _watches:
            _watches.remove(self)
        self._put_back()

    def _put_back(self) -> None:
        for module in list(self._shown):
            made = module.__dict__.get("_compiled_call_impl")
            if isinstance(made, _Shown):
                module.__dict__["_compiled_call_impl"] = made.own
        self._shown.clear()
        self._classes.clear()
        self._undo.close()


_WATCHED = (
    nn.Sequential, nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.DataParallel, nn.parallel.DistributedDataParallel,
)  # fmt: skip

_watches: list[Watch] = []  # the latest one sees


def _showing(call: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not _watches or id(self) in _interceptions:
            return call(self, *args, **kwargs)
        return _watches[-1].see(self, functools.partial(call, self), args, kwargs)

    return __call__


def _taking(init: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if _watches:
            _watches[-1].take(type(self))

    return __init__


_builds = ClassPatches({"__init__": _taking})

# what torch.compile returned has a forward of its own
_calls = ClassPatches({"__call__": _showing})
