"""A script's backward pass, run again with something else in place of its gates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from topk_plugin.compat import GradientEdge, is_probe, node_of
from topk_plugin.core.coupling import kind_of
from topk_plugin.core.score_gate import FollowGate, ScoreGate, SortedGate
from topk_plugin.core.shielded_gate import InputGate, OutputGate

# arguments of each gate's apply() before its tensors
_GATES: dict[Any, int] = {
    ScoreGate: 8,
    SortedGate: 4,
    FollowGate: 1,
    OutputGate: 2,
    InputGate: 3,
}

Answer = Callable[[Any, tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]


def unchanged(node: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return gradients


@contextmanager
def _standing_in(answer: Answer) -> Iterator[None]:
    """What a gate sends back is ``answer(node, gradients)`` for the time being."""
    originals = {cls: vars(cls)["backward"] for cls in _GATES}

    def stand_in(cls: Any, reply: Answer) -> Any:
        return staticmethod(
            lambda node, *gradients: (None,) * _GATES[cls] + tuple(reply(node, gradients))
        )

    try:
        for cls in originals:
            # a shield opens both ways: the formula stands at the scores
            cls.backward = stand_in(cls, unchanged if cls is InputGate else answer)
        yield
    finally:
        for cls, backward in originals.items():
            cls.backward = backward


def graph_of(roots: Iterable[Node | None]) -> tuple[dict[int, Tensor], list[Any]]:
    """The leaves that a backward from ``roots`` reaches, by id, and the gates it passes."""
    leaves: dict[int, Tensor] = {}
    gates = []
    queue = [root for root in roots if root is not None]
    seen = set(queue)
    while queue:
        node = queue.pop()
        if isinstance(node, torch._C._functions.AccumulateGrad):
            leaf: Tensor = node.variable
            if leaf.requires_grad and not is_probe(leaf):
                leaves[id(leaf)] = leaf
        elif kind_of(node) in (ScoreGate, SortedGate, OutputGate):
            gates.append(node)
        parents = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= parents
        queue += parents
    return leaves, gates


class Backward:
    """The script's call of ``torch.autograd.backward``, as its arguments say."""

    _signature = inspect.signature(torch.autograd.backward)

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.bound = self._signature.bind(*args, **kwargs)
        self.bound.apply_defaults()
        given = self.bound.arguments
        tensors, inputs = given["tensors"], given["inputs"]
        self.again = bool(given["retain_graph"])  # the script may go back the same way
        several = [tensors] if isinstance(tensors, Tensor | GradientEdge) else list(tensors)
        self.tensors: Any = several
        nodes = (e.node if isinstance(e, GradientEdge) else node_of(e) for e in several)
        self.roots = [node for node in nodes if node is not None]
        reached, self.gates = graph_of(self.roots)
        if given["create_graph"]:
            self.gates = []  # a penalty: no gate acts
        self.leaves = list(reached.values())
        if inputs is not None:
            chosen = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
            self.leaves = [chosen] if isinstance(chosen, Tensor) else list(chosen)

    def run(self, original: Callable[..., Any]) -> None:
        """The loop's own, on a graph that is kept for what comes after."""
        self.bound.arguments["retain_graph"] = True
        original(*self.bound.args, **self.bound.kwargs)

    def dry(self, answer: Answer) -> list[Tensor | None]:
        """The gradients by the leaves, with ``answer`` in place of the gates."""
        with _standing_in(answer):
            found = torch.autograd.grad(
                self.tensors,
                self.leaves,
                self._grad_tensors(),
                retain_graph=True,
                allow_unused=True,
            )
        return [None if g is None else dense(g) for g in found]

    @property
    def given(self) -> list[tuple[Any, Tensor | None]]:
        """Where it begins, each with the gradient that it is given."""
        given = self._grad_tensors()
        none = [None] * len(self.tensors)
        several = none if given is None else [given] if isinstance(given, Tensor) else list(given)
        return list(zip(self.tensors, several, strict=True))

    def _grad_tensors(self) -> Any:
        given = self.bound.arguments
        if given["grad_tensors"] is not None:
            return given["grad_tensors"]
        return given["grad_variables"]


def dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN
