"""Stand-ins for modules that an upstream imports and that are absent today.

A stub is only found by the upstream's own import statements, only where the real module is
absent, and it is gone from ``sys.modules`` with the next import: nobody else takes it for the
real one.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topk_plugin.adapter import Adapter


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The stubs of one adapter, from ``install()`` to ``remove()``.

    Args:
        roots: folders of the launched checkout, whose files may import the stubs too if the
            adapter is for a checkout.
    """

    def __init__(self, adapter: Adapter, roots: Sequence[Path] = ()) -> None:
        self.stubs: Mapping[str, Mapping[str, Any]] = adapter.stubs
        self.roots = [root.resolve() for root in roots] if adapter.patch else []
        self.packages = {wrap.module.partition(".")[0] for wrap in adapter.wraps}
        self._made: list[types.ModuleType] = []

    def install(self) -> None:
        """Begin to offer the stubs; twice is fine."""
        if self.stubs and self not in sys.meta_path:
            sys.meta_path.insert(0, self)  # first, so that it sees every import

    def remove(self) -> None:
        """No stub is offered or found any more; twice is fine."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self.hide()
        for module in self._made:
            parent, _, child = module.__name__.rpartition(".")
            package = sys.modules.get(parent)
            if package is not None and vars(package).get(child) is module:
                delattr(package, child)
        self._made.clear()

    def hide(self, asked: str = "") -> None:
        """Nobody can import the stubs that were made any more; the upstream keeps its names.

        Args:
            asked: what is being imported: its packages stay until it is there.
        """
        for module in self._made:
            name = module.__name__
            if sys.modules.get(name) is module and not asked.startswith(f"{name}."):
                del sys.modules[name]

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A stub, if it is the upstream that asks for it and nobody else has the module."""
        self.hide(fullname)  # what is imported now may ask for the same name
        package = any(name.startswith(f"{fullname}.") for name in self.stubs)
        if not (package or fullname in self.stubs) or not self._is_upstream(_importer()):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                return spec
        return importlib.machinery.ModuleSpec(fullname, self, is_package=package)

    def _is_upstream(self, module: Mapping[str, Any]) -> bool:
        if str(module.get("__name__", "")).partition(".")[0] in self.packages:
            return True
        return lies_in(module.get("__file__"), self.roots)

    def exec_module(self, module: types.ModuleType) -> None:
        """Give the stub its attributes."""
        vars(module).update(self.stubs.get(module.__name__, {}))
        self._made.append(module)


def _importer() -> Mapping[str, Any]:
    """Globals of the module whose import statement is being run."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith(("importlib", "wrapt")):
            return frame.f_globals
        frame = frame.f_back
    return {}


def lies_in(file: str | None, roots: Sequence[Path]) -> bool:
    """Whether a file is of a checkout; not of a virtual environment in it."""
    if file is None:
        return False
    path, installed = Path(file).resolve(), {"site-packages", "dist-packages"}
    return any(
        path.is_relative_to(root) and installed.isdisjoint(path.relative_to(root).parts)
        for root in roots
    )
