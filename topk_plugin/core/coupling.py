"""Whether a loss couples the rows of a batch, read from autograd's graph without running anything.

For losses that add up over samples, dropping a row's gradient is what the loss of the kept scores
alone gives. A loss that feeds a mean over the batch into something nonlinear (relativistic
averages), or that is nonlinear over the rows itself (logsumexp, std, a softmax over the batch), is
another matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from topk_plugin.compat import SHAPES, shapes_of
from topk_plugin.core.row_layout import INDEPENDENT, Coupled, Operation, State, output_of, scores
from topk_plugin.core.score_gate import ScoreGate, SortedGate
from topk_plugin.core.shielded_gate import OutputGate


def coupling(roots: Iterable[Node | None], sources: Mapping[Any, int]) -> str | None:
    """The operation that first couples the rows of a batch, or None.

    What is not known (custom functions, compiled graphs; all of it before torch 2.5, whose graph
    does not say it) couples nothing.

    Args:
        roots: where a backward begins.
        sources: nodes, with how many of their first outputs are (B, ...) scores.
    """
    return _first(_upwards(roots, sources), sources)


def coupling_of_gates(roots: Iterable[Node | None]) -> tuple[str | None, list[Any]]:
    """The same for the scores of all gates that a backward from ``roots`` passes.

    Returns:
        the operation, and the gates.
    """
    nodes = _upwards(roots)
    gates = {node: count for node in nodes if (count := _gated(node)) is not None}
    return _first(nodes, gates), list(gates)


def kind_of(node: Any) -> Any:
    """The autograd.Function that a node of the graph is of, if it is of one."""
    return getattr(type(node), "_forward_cls", None)


def _gated(node: Any) -> int | None:
    """Of a gate, how many of its first outputs lose the dropped rows; else None.

    Of the literal form, which took the rows themselves, 0.
    """
    if kind_of(node) is ScoreGate:
        return 0 if node.weigh == "none" else len(shapes_of(node))
    if kind_of(node) is SortedGate:
        return len(shapes_of(node)) if node.masks else 0
    if kind_of(node) is OutputGate:
        return len(shapes_of(node)) if node.call.follow else int(node.scores)
    return None


def ranking_of(node: Any) -> Tensor:
    """What a gate ranks, (B,); of several heads (H, B) until its backward ran."""
    ranking: Tensor
    if kind_of(node) is OutputGate:
        ranking = node.call.ranked.order
    elif kind_of(node) is SortedGate:
        ranking = node.ranked.order
    elif hasattr(node, "order"):
        ranking = node.order
    else:
        (ranking,) = node.saved_tensors
    return ranking


def _first(nodes: Iterable[Any], sources: Mapping[Any, int]) -> str | None:
    """The first of ``nodes``, in the order of computation, that couples rows of ``sources``."""
    if not SHAPES:
        return None
    known: dict[Any, list[State]] = {}
    for node in nodes:
        shapes = shapes_of(node)
        if node in sources:
            known[node] = [
                scores(shape) if number < sources[node] else INDEPENDENT
                for number, shape in enumerate(shapes)
            ]
            continue
        inputs = [
            known[parent][number] if parent in known else INDEPENDENT
            for parent, number in node.next_functions
        ]
        if all(one is INDEPENDENT for one in inputs):
            continue
        try:
            known[node] = [
                None if shape is None else output_of(Operation(node, inputs, shape, number))
                for number, shape in enumerate(shapes)
            ]
        except Coupled:
            return str(node.name())
    return None


def _upwards(roots: Iterable[Node | None], sources: Mapping[Any, int] | None = None) -> list[Any]:
    """The nodes between ``roots`` and ``sources`` or leaves, each after those it was made of.

    Where no sources are given the gates are, as far as they are met.
    """
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False) for root in roots if root is not None]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if (_gated(node) is None) if sources is None else (node not in sources):
                stack += [(parent, False) for parent, _ in node.next_functions if parent]
    return order
