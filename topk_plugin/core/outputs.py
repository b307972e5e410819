"""What a critic returns: the tensors beside the scores, and the same output with others in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from topk_plugin.core.ranking import part_of
from topk_plugin.core.trees import flatten, tree_leaves


def companions(output: Any, heads: list[Tensor], batch: int) -> list[Tensor]:
    """The tensors (B, ...) beside the scores through which a gradient may go back."""
    return [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.shape[:1] == (batch,)
        and not any(leaf is head for head in heads)
    ]  # fmt: skip


def with_named_apart(output: Any, names: Sequence[str | int]) -> Any:
    """``output``, where the tensors that ``names`` say are at no other place.

    A list of features may end with the score itself. Where the score is named, what the loss sends
    to the features is not the score's: the named place gets a view.

    Raises:
        ScoreShapeError: there is no such output.
    """
    if not names or isinstance(output, Tensor):
        return output
    leaves, rebuild = flatten(output)
    named = [part_of(output, name) for name in names]
    if all(sum(leaf is one for leaf in leaves) < 2 for one in named):
        return output
    numbers = rebuild([*range(len(leaves))])
    for name, one in zip(names, named, strict=True):
        if isinstance(one, Tensor):
            leaves[part_of(numbers, name)] = one.view_as(one)
    return rebuild(leaves)


def with_replaced(output: Any, old: list[Tensor], new: tuple[Tensor, ...]) -> Any:
    """``output`` with the tensors ``old`` in it replaced by ``new``, all else as it is."""
    if isinstance(output, Tensor):
        return new[0]
    leaves, rebuild = flatten(output)
    for tensor, gated in zip(old, new, strict=True):
        leaves = [gated if leaf is tensor else leaf for leaf in leaves]
    return rebuild(leaves)
