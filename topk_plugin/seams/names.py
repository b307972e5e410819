"""Classes by the names that a script has for them: ``module:Class``.

A name means what the module has bound to it, wherever that class was made: ``from models import
*``, an alias, ``m.Critic`` for an imported module m. Where a module has no class of that name, it
means the class that says so itself, as those that are made in functions do.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from topk_plugin.errors import ConfigError

MISSING = object()

_LOCALS = ".<locals>."
_SCRIPT = ("__main__", "__mp_main__")  # the second in children that it spawns


class Match(NamedTuple):
    """How a class is meant by a name."""

    distance: int  # in the MRO: 0 is the class itself, 1 its parent
    attribute: str | None  # of the instance, if it is that submodule that scores


@dataclass(frozen=True)
class CriticPath:
    """``module:Class``, or ``module:Class.attribute`` for critics that average inside."""

    module: str
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> CriticPath:
        """Raises ConfigError for anything else."""
        module, _, path = text.partition(":")
        names = tuple(path.split("."))
        if not all(part.isidentifier() for part in module.split(".")) or not all(names):
            raise ConfigError(
                f"--critic: found {text!r}, expected module:Class or module:Class.attribute, such "
                "as model:Discriminator; __main__:Discriminator for a class of the script itself"
            )
        return cls(module, names)

    def __str__(self) -> str:
        return f"{self.module}:{'.'.join(self.names)}"

    def modules(self) -> list[types.ModuleType]:
        """What it names, as far as that is imported."""
        named = {name: sys.modules.get(name) for name in self._module_names()}
        # some packages put other objects there, and None stands for what must not be imported
        found = {name: m for name, m in named.items() if isinstance(m, types.ModuleType)}
        spawned = found.get("__mp_main__")
        if spawned is not None and spawned.__name__ != "__mp_main__":
            del found["__mp_main__"]  # multiprocessing's name for what was started, the launcher
        return [*found.values()]

    def _module_names(self) -> tuple[str, ...]:
        if self.module == "__main__":
            return _SCRIPT
        if self.module not in sys.modules:
            for name in _SCRIPT:  # `-m package.train` is its __main__, and no package.train
                spec = getattr(sys.modules.get(name), "__spec__", None)
                if spec is not None and spec.name in (self.module, f"{self.module}.__main__"):
                    return _SCRIPT
        return (self.module,)

    def stands_for(self) -> list[type | None]:
        """The classes that it is bound to now: by the whole name, and without the last part."""
        return [self._bound(self.names), self._bound(self.names[:-1])]

    def _bound(self, names: Sequence[str]) -> type | None:
        for module in self.modules() if names else ():
            found = class_of(walk(module, names).value)
            if found is not None:
                return found
        return None

    def match(self, cls: type) -> Match | None:
        """Whether ``cls`` is or derives from that class."""
        distance = self._distance(cls, self.names)
        if distance is not None:
            return Match(distance, None)
        last = inspect.getattr_static(cls, self.names[-1], None)
        distance = self._distance(cls, self.names[:-1]) if not isinstance(last, type) else None
        return None if distance is None else Match(distance, self.names[-1])

    def _distance(self, cls: type, names: Sequence[str]) -> int | None:
        if not names:
            return None
        bound = self._bound(names)
        if bound is not None:
            return cls.__mro__.index(bound) if bound in cls.__mro__ else None
        modules, name = self._module_names(), ".".join(names)
        for distance, base in enumerate(cls.__mro__):
            if base.__module__ in modules and name in names_of(base.__qualname__):
                return distance
            if base.__name__ == name and self._exports_late(base):
                return distance
        return None

    def _exports_late(self, cls: type) -> bool:
        """Whether a module that imports what it is asked for gives ``cls`` for its own name.

        Asked of a class that was built: so the import that it may be is done already.
        """
        lazy = [module for module in self.modules() if "__getattr__" in vars(module)]
        return any(getattr(module, cls.__name__, None) is cls for module in lazy)


def names_of(qualname: str) -> Iterator[str]:
    """``make.<locals>.Critic`` is also ``make.Critic`` and ``Critic``."""
    parts = qualname.split(_LOCALS)
    for start in range(len(parts)):
        yield _LOCALS.join(parts[start:])
        yield ".".join(parts[start:])


def title(cls: Any) -> str:
    """The path that means a class or a function, ``module:Class``."""
    module, name, own = cls.__module__, cls.__qualname__, cls.__name__
    if _LOCALS in name:
        for base in getattr(cls, "__mro__", ()):  # a decorator made it of a class that it replaced
            home = sys.modules.get(base.__module__)
            if home is not None and vars(home).get(own) is cls:
                module, name = base.__module__, own
                break
    module = "__main__" if module == "__mp_main__" else module
    return f"{module}:{name.replace(_LOCALS, '.')}"


class Found(NamedTuple):
    """How far a dotted name leads."""

    value: Any  # MISSING if not to its end
    owner: Any  # what has the last part, or lacks it
    part: str  # that part


def walk(module: types.ModuleType, names: Sequence[str]) -> Found:
    """Follow ``names`` from a module, without calling anything of the script's."""
    value: Any = module
    for name in names:
        owner, value = value, _member(value, name)
        if value is MISSING:
            return Found(MISSING, owner, name)
    return Found(value, owner, names[-1])


def _member(owner: Any, name: str) -> Any:
    if isinstance(owner, types.ModuleType):
        return vars(owner).get(name, MISSING)
    if isinstance(owner, nn.Module) and name in owner.__dict__.get("_modules", ()):
        return owner._modules[name]
    return inspect.getattr_static(owner, name, MISSING)


def class_of(value: Any) -> type | None:
    """The class that ``value`` is, or that it calls: a partial, a decorator's wrapper."""
    while not isinstance(value, type):
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, types.FunctionType) and "__wrapped__" in vars(value):
            value = vars(value)["__wrapped__"]
        else:
            return None
    return value
