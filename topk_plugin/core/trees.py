"""What is in the containers that a loop passes around: tensors, and all else.

torch's pytree opens tuples, lists, dicts, and classes that were registered with it. Critics of
other people return more: subclasses of dict (EasyDict, a library's ModelOutput), dataclasses,
namespaces. These are opened, too, and copied where something in them is replaced.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

Rebuild = Callable[[Sequence[Any]], Any]


def tree_leaves(tree: Any) -> list[Any]:
    """What is in ``tree``, and no container."""
    return flatten(tree)[0]


def flatten(tree: Any) -> tuple[list[Any], Rebuild]:
    """The leaves of ``tree``, and what makes a tree like it of as many others.

    A container that torch does not know, and in which nothing is replaced, stays the same object.
    """
    leaves, spec = pytree.tree_flatten(tree)
    if not any(_is_unknown(leaf) for leaf in leaves):
        return leaves, partial(_unflatten, spec)
    opened = [_opened(leaf) if _is_unknown(leaf) else ([leaf], _alone) for leaf in leaves]
    return [leaf for inner, _ in opened for leaf in inner], partial(_rebuild, spec, opened)


def parts_of(container: Any) -> list[tuple[str | int, Any]] | None:
    """Its parts and how they are called, by key, field or index; None: it is no container."""
    known = pytree.SUPPORTED_NODES.get(pytree._get_node_type(container))
    if known is None:
        return _named(container) if _is_unknown(container) else None
    parts = list(known.flatten_fn(container)[0])
    names: Sequence[Any] = fields_of(container)
    if isinstance(container, Mapping):
        names = list(container)
    return list(zip(names if len(names) == len(parts) else range(len(parts)), parts, strict=True))


def fields_of(container: Any) -> Sequence[str]:
    """Names of its parts that are attributes; none where they are items."""
    if isinstance(container, (Mapping, type)):
        return ()
    if isinstance(container, SimpleNamespace):
        return list(vars(container))
    if dataclasses.is_dataclass(container):
        names = [field.name for field in dataclasses.fields(container)]
        return [name for name in names if hasattr(container, name)]  # __init__ may leave one out
    return getattr(type(container), "_fields", ())


def _unflatten(spec: pytree.TreeSpec, leaves: Sequence[Any]) -> Any:
    return pytree.tree_unflatten(list(leaves), spec)


def _rebuild(
    spec: pytree.TreeSpec, opened: Sequence[tuple[list[Any], Rebuild]], leaves: Sequence[Any]
) -> Any:
    whole, at = [], 0
    for inner, made in opened:
        whole.append(made(leaves[at : at + len(inner)]))
        at += len(inner)
    return pytree.tree_unflatten(whole, spec)


def _alone(leaves: Sequence[Any]) -> Any:
    return leaves[0]


# --- containers that torch does not know --------------------------------------------------------


def _is_unknown(leaf: Any) -> bool:
    """Whether a leaf of a pytree is a container all the same."""
    if isinstance(leaf, (Tensor, nn.Module, type)):
        return False
    return isinstance(leaf, (dict, UserDict, list, SimpleNamespace)) or (
        dataclasses.is_dataclass(leaf) and not hasattr(leaf, "__torch_function__")
    )


def _named(container: Any) -> list[tuple[str | int, Any]]:
    if isinstance(container, (dict, UserDict)):
        return list(container.items())
    if isinstance(container, list):
        return list(enumerate(container))
    return [(name, getattr(container, name)) for name in fields_of(container)]


def _opened(container: Any) -> tuple[list[Any], Rebuild]:
    named = _named(container)
    leaves, made = flatten([part for _, part in named])
    return leaves, partial(_copied, container, named, leaves, made)


def _copied(
    container: Any, named: Sequence[tuple[Any, Any]], old: Sequence[Any], made: Rebuild,
    leaves: Sequence[Any],
) -> Any:  # fmt: skip
    """``container`` if ``leaves`` are the ``old`` ones, else a copy that has them."""
    if all(a is b for a, b in zip(old, leaves, strict=True)):
        return container
    other = copy.copy(container)
    for (name, before), part in zip(named, made(leaves), strict=True):
        if part is before:
            continue
        if isinstance(container, (dict, UserDict, list)):
            other[name] = part
        else:
            object.__setattr__(other, name, part)  # also where the dataclass is frozen
    return other
