"""What a critic returns: the tensors beside the scores, and the same output with others in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from topk_plugin.compat import tree_leaves


def companions(output: Any, heads: list[Tensor], batch: int) -> list[Tensor]:
    """The tensors (B, ...) beside the scores through which a gradient may go back."""
    return [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.shape[:1] == (batch,)
        and not any(leaf is head for head in heads)
    ]  # fmt: skip


def with_replaced(output: Any, old: list[Tensor], new: tuple[Tensor, ...]) -> Any:
    """``output`` with the tensors ``old`` in it replaced by ``new``, all else as it is."""
    if isinstance(output, Tensor):
        return new[0]
    leaves, spec = pytree.tree_flatten(output)
    for tensor, gated in zip(old, new, strict=True):
        leaves = [gated if leaf is tensor else leaf for leaf in leaves]
    return pytree.tree_unflatten(leaves, spec)
