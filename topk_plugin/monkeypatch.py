"""What is replaced in objects that are not ours, and put back as it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import wrapt

F = TypeVar("F", bound=Callable[..., Any])


def stands_in(original: Callable[..., Any]) -> Callable[[F], F]:
    """Decorates what takes the place of ``original``: it shows that one's name and parameters.

    ``inspect.getfullargspec`` does not follow ``__wrapped__``, hence the signature.
    """

    def decorate(function: F) -> F:
        functools.update_wrapper(function, original)
        with contextlib.suppress(ValueError, TypeError):  # some that are written in C have none
            function.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return function

    return decorate


class ClassPatches:
    """Wraps the same functions of any number of classes (or modules), counting who asked.

    Args:
        wrappers: for each method's name what makes the new function of the present one. The
            function is called as the present one is, by position or by keyword, ``self`` too:
            torch's state-dict helpers say ``state_dict(self=optimizer)``.
    """

    def __init__(self, wrappers: Mapping[str, Callable[[Any], Any]]) -> None:
        self.wrappers = wrappers
        self._users: Counter[Any] = Counter()
        self._own: dict[Any, dict[str, Any]] = {}  # what the class itself defined
        self._ours: dict[Any, dict[str, Any]] = {}
        self._suspended = 0  # how many times over

    def holds(self, cls: Any) -> bool:
        """Whether the methods of ``cls`` are wrapped."""
        return self._users[cls] > 0

    def wrap(self, cls: Any) -> None:
        """Wrap the methods of ``cls``; once, however often it is asked."""
        if not self._users[cls]:
            self._own[cls] = {name: cls.__dict__.get(name) for name in self.wrappers}
            self._ours[cls] = {}
            for name, wrapper in self.wrappers.items():
                present = getattr(cls, name)
                self._ours[cls][name] = stands_in(present)(wrapper(present))
            if not self._suspended:
                _put(cls, self._ours[cls])
        self._users[cls] += 1

    def unwrap(self, cls: Any) -> None:
        """Undo one :meth:`wrap`; the last one restores the very objects."""
        self._users[cls] -= 1
        if self._users[cls]:
            return
        del self._users[cls], self._ours[cls]
        _put(cls, self._own.pop(cls))

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Every class is as it was, for the time being; then our very functions are back."""
        self._suspended += 1
        try:
            for cls, own in self._own.items():
                _put(cls, own)
            yield
        finally:
            self._suspended -= 1
            for cls, ours in self._ours.items() if not self._suspended else ():
                _put(cls, ours)


def _put(cls: Any, functions: Mapping[str, Any]) -> None:
    for name, function in functions.items():
        if function is not None:
            setattr(cls, name, function)
        elif name in cls.__dict__:  # it was inherited
            delattr(cls, name)


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
