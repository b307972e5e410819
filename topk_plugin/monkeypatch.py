"""What is replaced in objects that are not ours, and put back as it was."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import wrapt


class ClassPatches:
    """Wraps the same methods on any number of classes, counting who asked.

    Args:
        wrappers: for each method's name what makes the new function of the present one.
    """

    def __init__(self, wrappers: Mapping[str, Callable[[Any], Any]]) -> None:
        self.wrappers = wrappers
        self._users: Counter[type] = Counter()
        self._own: dict[type, dict[str, Any]] = {}  # what the class itself defined

    def holds(self, cls: type) -> bool:
        """Whether the methods of ``cls`` are wrapped."""
        return self._users[cls] > 0

    def wrap(self, cls: type) -> None:
        """Wrap the methods of ``cls``; once, however often it is asked."""
        if not self._users[cls]:
            self._own[cls] = {name: cls.__dict__.get(name) for name in self.wrappers}
            for name, wrapper in self.wrappers.items():
                setattr(cls, name, wrapper(getattr(cls, name)))
        self._users[cls] += 1

    def unwrap(self, cls: type) -> None:
        """Undo one :meth:`wrap`; the last one restores the very objects."""
        self._users[cls] -= 1
        if self._users[cls]:
            return
        del self._users[cls]
        for name, own in self._own.pop(cls).items():
            if own is None:  # it was inherited
                delattr(cls, name)
            else:
                setattr(cls, name, own)


_MISSING = object()


class _Bound(wrapt.BoundFunctionWrapper):
    """A method of an instance: its copies and pickles are those of the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


class Wrapped(wrapt.FunctionWrapper):
    """A function with a wrapper around it; pickled by name, as functions are."""

    __bound_function_wrapper__ = _Bound

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__qualname__


class PatchLog:
    """What was replaced, in order, so that it can be verified and undone in reverse."""

    def __init__(self) -> None:
        self._entries: list[tuple[Any, str, Any, Any]] = []  # owner, name, before, after
        self.active = True  # wrappers that could not be removed do nothing once it is False

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class."""
        # what the owner itself defines: getattr would bind, and find what is inherited
        self._set(owner, name, vars(owner).get(name, _MISSING), value)

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Put ``wrapper(wrapped, instance, args, kwargs)`` around a function of a module or class.

        Static and class methods are bound as they were.
        """
        before = vars(owner).get(name, _MISSING)
        while any(
            after is before and (other is not owner or its_name != name)
            for other, its_name, _, after in self._entries
        ):  # an alias, imported after what it stands for was wrapped
            before = before.__wrapped__
        present = inspect.getattr_static(owner, name) if before is _MISSING else before
        wrapped = Wrapped(present, wrapper, enabled=lambda: self.active)
        self._set(owner, name, before, wrapped)

    def _set(self, owner: Any, name: str, before: Any, value: Any) -> None:
        setattr(owner, name, value)
        self._entries.append((owner, name, before, value))

    def holds(self, owner: Any, name: str) -> bool:
        """Whether that attribute of ``owner`` itself is one of ours."""
        present = vars(owner).get(name, _MISSING)
        return any(after is present for _, _, _, after in self._entries)

    def verify(self) -> list[str]:
        """Names of what somebody else has replaced since, without calling what was there."""
        latest = {(id(owner), name): (owner, after) for owner, name, _, after in self._entries}
        return [
            f"{getattr(owner, '__name__', owner)}.{name}"
            for (_, name), (owner, after) in latest.items()
            if not _leads_to(vars(owner).get(name, _MISSING), after)
        ]

    def undo(self) -> list[str]:
        """Put back the very objects, in reverse order.

        Returns:
            names of what somebody else has replaced since: that is left as it is, and whatever it
            calls of ours does nothing any more.
        """
        self.active = False
        left: dict[str, None] = {}  # in order, each name once
        while self._entries:
            owner, name, before, after = self._entries.pop()
            if vars(owner).get(name, _MISSING) is not after:
                left[f"{getattr(owner, '__name__', owner)}.{name}"] = None
            elif before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        return list(left)


def _leads_to(present: Any, ours: Any) -> bool:
    """Whether ``present`` is ours, or a wrapper around it."""
    while present is not ours and hasattr(present, "__wrapped__"):
        present = present.__wrapped__
    return present is ours
