"""Whether a module that was imported is the one that an adapter was written for."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import sys
import types
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from topk_plugin.adapter import Adapter, Wrap
from topk_plugin.errors import SeamNotFound, UnsupportedUpstream
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.stubs import lies_in


class Fingerprint:
    """What was found of one adapter's upstream, beside what the adapter was written for.

    Args:
        upstream: of the adapter.
        in_source: `topk patch` has edited the files, and compared them then.
    """

    def __init__(self, adapter: Adapter, upstream: Upstream, in_source: bool = False) -> None:
        self.adapter, self.upstream, self.in_source = adapter, upstream, in_source
        self.differ: list[str] = []  # what was found otherwise, where that is forced
        self._strangers: dict[str, str] = {}  # modules of those names that lie elsewhere
        self._distribution: importlib.metadata.Distribution | None = None

    def begin(self) -> None:
        """Look for the distribution, and forget what was found before.

        Raises:
            SeamNotFound: it is not installed, and this is no checkout of it.
        """
        self.differ.clear()
        self._strangers.clear()
        name, roots = self.adapter.distribution, self.upstream.roots
        if name is None:
            return
        try:
            self._distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            package = self.adapter.wraps[0].module.partition(".")[0]
            if any((root / package).is_dir() for root in roots):
                return  # a checkout
            raise SeamNotFound(
                f"adapter {self.adapter.name}: {name} is not installed here, and there is no "
                f"{package} in {' or '.join(map(str, roots)) or 'the checkout'}. Install it: "
                f"{self.adapter.install or f'pip install {name}'}"
            ) from None

    def belongs(self, module: types.ModuleType) -> bool:
        """Whether a module is the distribution's, or else of the launched checkout."""
        file = getattr(module, "__file__", None)
        if file is not None:
            if self._distribution is not None and is_of(self._distribution, Path(file).resolve()):
                return True
            if lies_in(file, self.upstream.roots):
                self._distribution = None  # the checkout goes before what is installed
                return True
        self._strangers[module.__name__] = str(file or "no file")
        return False

    def verify(self, module: types.ModuleType, wraps: Sequence[Wrap], force: bool) -> None:
        """Compare names and signatures of a module with those that ``wraps`` state.

        Raises:
            UnsupportedUpstream: they differ, and that is not forced.
        """
        differ = [text for wrap in wraps if (text := difference(module, wrap))]
        if differ and not force:
            raise UnsupportedUpstream(self._unsupported(module, differ))
        self.differ += differ

    def found(self) -> str:
        """The upstream and its release, in words."""
        what = self.adapter.upstream if self._distribution is None else self.adapter.distribution
        if self.in_source and self.adapter.patch is not None:
            return f"{what} {self.adapter.patch.commit}, patched"
        return f"{what} {self._release() or 'of unknown version'}"

    def notes(self) -> list[str]:
        """How what was found differs from what was tested."""
        if self.in_source or (self._release() in self.adapter.versions and not self.differ):
            return []
        ignored = f"ignored (--force): {'; '.join(self.differ)}"
        return [
            f"note: {self.found()} is not what the adapter {self.adapter.name} was tested with "
            f"({', '.join(self.adapter.versions)}); "
            + (ignored if self.differ else "what it relies on matches")
        ]

    def describe_strangers(self) -> str:
        """Modules of the right names from elsewhere, in words; empty where there is none."""
        installed = f" or the installed {self.adapter.distribution}" if self._distribution else ""
        return "; ".join(
            f"{module} came from {file}, which is not of the launched checkout{installed}"
            for module, file in self._strangers.items()
        )

    def _release(self) -> str | None:
        if self._distribution is not None:
            return self._distribution.version
        if self.adapter.patch is not None:
            return self.upstream.release()
        package = sys.modules.get(self.adapter.wraps[0].module.partition(".")[0])
        return getattr(package, "__version__", None)

    def _unsupported(self, module: types.ModuleType, differ: list[str]) -> str:
        tested = ", ".join(self.adapter.versions)
        install = (
            f" Install a tested version: {self.adapter.install}." if self.adapter.install else ""
        )
        return (
            f"adapter {self.adapter.name}: {self.found()} is not what it was written for "
            f"({tested}): in {module.__file__} {'; '.join(differ)}.{install} Or name the critic, "
            "which needs no adapter: --critic module:Class. --force goes on all the same."
        )


def find(module: types.ModuleType, name: str) -> tuple[Any, str] | None:
    """The owner and the last part of a dotted name in a module; None if there is none."""
    *path, last = name.split(".")
    try:
        owner = functools.reduce(getattr, path, module)
    except AttributeError:
        return None
    return (owner, last) if hasattr(owner, last) else None


def difference(module: types.ModuleType, wrap: Wrap) -> str | None:
    """How upstream differs from what the adapter relies on, or None."""
    found = find(module, wrap.name)
    if found is None:
        return f"there is no {wrap.name}{wrap.signature}"
    function = getattr(*found)
    try:
        signature = signature_of(function)
    except (TypeError, ValueError):
        return f"{wrap.name} is a {type(function).__name__}, expected {wrap.name}{wrap.signature}"
    if signature != wrap.signature:
        return f"found {wrap.name}{signature}, expected {wrap.name}{wrap.signature}"
    return None


def signature_of(function: Callable[..., Any]) -> str:
    """A function's signature without annotations, as :class:`Wrap` has it."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def is_of(distribution: importlib.metadata.Distribution, path: Path) -> bool:
    """Whether a file is one of a distribution's, which may be installed in editable mode."""
    for file in distribution.files or ():
        if file.name == path.name and Path(str(file.locate())).resolve() == path:
            return True
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not url.get("dir_info", {}).get("editable"):
        return False
    folder = urllib.request.url2pathname(urllib.parse.urlparse(url["url"]).path)
    return path.is_relative_to(Path(folder).resolve())
