"""Which parameters a tensor was computed from, and which of them are the generator's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from topk_plugin.core.ledger import StepLedger
from topk_plugin.core.ranking import plain
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
    node: Node | None, accepts: Callable[[Node], bool], ledger: StepLedger, whole: bool
) -> tuple[Node | None, frozenset[int]]:
    """What parameters a tensor was computed from that ``node`` made.

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
    queue, seen = deque([node]), {node}
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


ARITHMETIC = "Add Sub Mul Div Neg Tanh Sigmoid Clamp ClampMin ClampMax"
MOVED = "ToCopy Alias Clone"
RESIZED = (
    "UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D AvgPool2D ReflectionPad2D GridSampler2D"
)
SAME_ROWS = {f"{name}Backward0" for name in f"{ARITHMETIC} {MOVED} {RESIZED}".split()}
"""Nodes after which a row is of the same sample as before, of one tensor and perhaps numbers."""
RESHAPED = {f"{name}Backward0" for name in ("View", "UnsafeView", "ReshapeAlias")}
"""Nodes after which the numbers stand in the same order, in other rows perhaps."""
PASSED = SAME_ROWS | RESHAPED


def generated_rows(
    tensor: Tensor, accepts: Callable[[Node], bool], ledger: StepLedger
) -> slice | None:
    """Which rows of a batch that ``torch.cat`` joined from several the generator made.

    Args:
        tensor: (B, ...) that a critic is called with, some of it made by the generator.
        accepts: whether a node is the gradient accumulator of a generator parameter.

    Returns:
        None if all did, or nothing can be told: rows that were joined in another way, computed on
        since by more than arithmetic or a change of size, or generated ones with others between.
    """
    node, shape = tensor.grad_fn, tensor.shape
    while node is not None and node.name() in PASSED:
        if node.name() in RESHAPED:
            shape = torch.Size(node._saved_self_sym_sizes)  # type: ignore[attr-defined]  # before
        before = [parent for parent, _ in node.next_functions if parent is not None]
        node = before[0] if len(before) == 1 else None
    if node is None or node.name() != "CatBackward0":
        return None
    dim: int = node._saved_dim  # type: ignore[attr-defined]  # of what has grad_fn CatBackward0
    dim = dim - 2**64 if dim >= 2**63 else dim
    if dim not in (0, -len(shape)):
        return None  # channels, say
    parents = [parent for parent, _ in node.next_functions]
    made = [
        parent is not None and parameters_upstream(parent, accepts, ledger, False)[0] is not None
        for parent in parents
    ]
    if all(made) or not any(made):
        return None
    first, last = made.index(True), len(made) - 1 - made[::-1].index(True)
    if not all(made[first : last + 1]):
        return None
    # the node itself says what is whose: what backward() of it would give
    parts = node(plain(tensor.detach()).new_zeros(()).expand(shape))  # type: ignore[operator]
    sizes = [0 if part is None else len(part) for part in parts]
    # where it was reshaped since, a row became several, or several became one
    ends = [sum(sizes[:place]) * len(tensor) for place in (first, last + 1)]
    if sum(sizes) != shape[0] or any(end % shape[0] for end in ends):
        return None
    return slice(ends[0] // shape[0], ends[1] // shape[0])
