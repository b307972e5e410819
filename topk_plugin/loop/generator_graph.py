"""Which parameters a tensor was computed from, and which of them are the generator's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from topk_plugin.core.ledger import StepLedger
from topk_plugin.core.sharded import anything_is_sharded, owner_of


def generator_test(
    critic_ids: frozenset[int], mine: frozenset[int] | None, ledger: StepLedger
) -> Callable[[Node], bool]:
    """A test of whether a node is the gradient accumulator of a generator parameter.

    Args:
        critic_ids: ids of the critic's parameters.
        mine: ids of them; None: any parameter that is not the critic's.
        ledger: knows what optimizers own.
    """

    def accepts(node: Node) -> bool:
        leaf = getattr(node, "variable", None)
        if leaf is None:
            return False
        leaf = owner_of(leaf)
        if id(leaf) in critic_ids:
            return False
        if mine is not None:
            return id(leaf) in mine
        # plain tensors, such as images, are none unless an optimizer steps them
        known = isinstance(leaf, nn.Parameter) or id(leaf) in ledger.optimized
        return known and id(leaf) not in ledger.of_critic

    return accepts


def parameters_upstream(
    tensor: Tensor, accepts: Callable[[Node], bool], ledger: StepLedger, whole: bool
) -> tuple[Node | None, frozenset[int]]:
    """What parameters ``tensor`` was computed from.

    Breadth first: the generator's last layer is a few nodes away.

    Args:
        accepts: whether a node is the gradient accumulator of a generator parameter.
        whole: go on when the first one was found.

    Returns:
        the gradient accumulator of the nearest generator parameter, or None; and the ids of
        all parameters upstream, the critic's included.
    """
    found = None
    leaves: set[int] = set()
    queue, seen = deque([tensor.grad_fn]), {tensor.grad_fn}
    sharded = anything_is_sharded()
    while queue:
        node = queue.popleft()
        if node is None:
            continue
        if isinstance(node, torch._C._functions.AccumulateGrad):
            leaf = owner_of(node.variable) if sharded else node.variable
            if isinstance(leaf, nn.Parameter) or id(leaf) in ledger.optimized:
                leaves.add(id(leaf))
            if found is None and accepts(node):
                found = node
                if not whole:
                    break
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return found, frozenset(leaves)
