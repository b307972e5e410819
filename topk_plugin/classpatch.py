"""Methods of a class, wrapped while anybody needs it and put back as they were afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


class ClassPatches:
    """Wraps the same methods on any number of classes, counting who asked.

    Args:
        wrappers: for each method's name what makes the new function of the present one.
    """

    def __init__(self, wrappers: Mapping[str, Callable[[Any], Any]]) -> None:
        self.wrappers = wrappers
        self._users: Counter[type] = Counter()
        self._own: dict[type, dict[str, Any]] = {}  # what the class itself defined

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
