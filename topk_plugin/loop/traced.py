"""What torch.compile traces of an attached critic's calls, and what is said where it cannot."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import torch
from torch import Tensor

from topk_plugin.compat import TORCH, is_exporting
from topk_plugin.core.trees import tree_leaves
from topk_plugin.errors import SeamNotFound

CANNOT_BE_TRACED = (
    "top-k's gate cannot be part of a graph. Compile the critic by itself, "
    "`D = torch.compile(D, fullgraph=True)` or `D.compile(fullgraph=True)` (of a critic named as "
    "Class.attribute that attribute), and not what calls it; or leave fullgraph=True out there: "
    "the critic runs between two graphs then"
)


class _Inside(threading.local):
    """Where this thread is; torch.compile guards what it reads of it."""

    def __init__(self) -> None:
        # a critic called by an attached critic is part of it; no default of the class's, which is
        # what torch.compile would take for the value (before 2.8)
        self.a_critic = False


inside = _Inside()

# what is traced reads no attribute of a thread before torch 2.5: there, of whatever thread
traced: Any = inside if TORCH >= (2, 5) else types.SimpleNamespace(a_critic=False)


def enter_critic(entered: bool) -> None:
    """This thread enters a critic's call, or leaves it."""
    inside.a_critic = traced.a_critic = entered


def is_as_plain(args: Any, kwargs: Any) -> bool:
    """While a call is traced: whether nothing would be gated in it anyway."""
    if is_exporting() or not torch.is_grad_enabled():
        return True
    leaves = tree_leaves((args, kwargs))
    return not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)


def something_is_compiled() -> bool:
    """Whether torch.compile made a graph in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("stats"))


def refusal(error: BaseException | None) -> SeamNotFound | None:
    """What to say of an error of torch.compile's, if it is that a gate cannot be in its graph."""
    while error is not None:
        # only a step that may not be split ends in it; torch.compile's own errors name the reason
        if type(error).__module__ == "torch._dynamo.exc" and CANNOT_BE_TRACED in str(error):
            return SeamNotFound(
                f"a call of the critic lies inside torch.compile(..., fullgraph=True), and "
                f"{CANNOT_BE_TRACED}."
            )
        error = error.__cause__ or error.__context__
    return None
