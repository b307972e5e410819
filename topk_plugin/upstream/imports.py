"""Being told when a module is imported."""

from __future__ import annotations

import sys
import types
import weakref
from typing import Protocol

import wrapt


class Listener(Protocol):
    """Who is told."""

    def imported(self, module: types.ModuleType) -> None:
        """A module that it waits for was imported."""


_waiting: dict[str, weakref.WeakSet[Listener]] = {}  # by the module's name


def when_imported(module: str, listener: Listener) -> None:
    """Tell ``listener`` when a module is imported: now, if it is already."""
    _waiting.setdefault(module, weakref.WeakSet()).add(listener)
    if module in sys.modules:
        listener.imported(sys.modules[module])
    else:
        wrapt.register_post_import_hook(_tell, module)


def wait_no_longer(listener: Listener) -> None:
    """Tell ``listener`` of no module any more."""
    for listeners in _waiting.values():
        listeners.discard(listener)


def _tell(module: types.ModuleType) -> None:
    for listener in list(_waiting.get(module.__name__, ())):
        listener.imported(module)
