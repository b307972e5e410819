"""Whether a module that was imported is the one that an adapter was written for."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import types
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from topk_plugin.adapter import Wrap


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
