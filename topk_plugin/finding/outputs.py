"""What a module returned for generated samples, and which of it may be scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from torch import Tensor

from topk_plugin.core.graph import reaches
from topk_plugin.core.ranking import named_leaves, resembles_score
from topk_plugin.core.trees import flatten
from topk_plugin.finding.rules import Kind, Output

Leaves = dict[str, tuple[Tensor, bool]]
"""Outputs by name, and whether they may be scores by their shape."""


class Returned(NamedTuple):
    """One call's output."""

    output: Any  # that the loop gets
    leaves: Leaves  # numbers of each sample, which are watched
    beside: Leaves  # the same, of other samples than the generator's
    whole: bool  # there are numbers of each sample in it: else look inside


class Outputs(dict[str, Output]):
    """Those that depend on the generator's samples, by dotted name; of one module."""

    def __init__(self) -> None:
        self.beside: dict[str, tuple[int, ...]] = {}  # shapes of outputs for other samples alone
        self.listed = False  # they are a list
        self.copies = False  # several hold the same numbers
        self.odd = ""  # what cannot rank samples

    def take(
        self, output: Any, batch: int, shape: Sequence[int], nodes: Sequence[Any] | None
    ) -> Returned:
        """A call gave ``output``.

        Args:
            batch, shape: of the samples that it was called with.
            nodes: that made the generator's; None: there are none, or they are detached.
        """
        known = bool(self)  # it was called for the generator's samples before
        leaves: Leaves = {}
        beside: Leaves = {}
        mean = False
        places, numbers = set[tuple[int, int]](), dict[str, int]()
        for number, (name, leaf) in enumerate(named_leaves(output)):
            if not isinstance(leaf, Tensor):
                continue
            name = name or "0"
            rows = leaf.shape[:1] == (batch,) or (batch == 1 and leaf.numel() == 1)
            if not leaf.requires_grad or (nodes is not None and not reaches(leaf, nodes)):
                if nodes is not None and rows:  # a frozen critic's have no gradient
                    self.beside[name] = tuple(leaf.shape)
                    if leaf.requires_grad:
                        beside[name] = leaf, False
                continue
            # a list of features may end with the score itself
            place = leaf.untyped_storage().data_ptr(), leaf.numel()
            self.copies |= nodes is not None and place in places
            places.add(place)
            if rows:
                kind = _kind(leaf, batch, shape)
                key = self._key(name, kind)
                if nodes is not None:
                    self.setdefault(key, Output(tuple(leaf.shape), kind))
                leaves[key], numbers[key] = (leaf, kind == "score"), number
            elif leaf.numel() == 1:
                mean = True
            elif nodes is not None:
                self.odd = f"{name} {tuple(leaf.shape)} for a batch of {batch}"
        self.listed |= isinstance(output, list)
        whole = bool(leaves or self.odd) or not mean
        if nodes is not None:
            output, leaves = _apart(output, leaves, numbers)
        elif not known:
            leaves = {name: one for name, one in leaves.items() if one[1]}
        return Returned(output, leaves, beside, whole)

    def _key(self, name: str, kind: Kind) -> str:
        """Of an output by its name: in another mode it may be something else."""
        known = self.get(name)
        return name if known is None or known.kind == kind else f"{name} ({kind})"

    def twins(self, head: str) -> set[str]:
        """Outputs like ``head`` for the samples that are set against the generator's, in one call
        for both."""
        idle = {n: o.shape for n, o in self.items() if not o.raised + o.lowered}
        alike = {n for n, shape in (self.beside | idle).items() if shape == self[head].shape}
        return alike - {head}

    @property
    def are_images(self) -> bool:
        """And no score is beside them."""
        return "image" in self._kinds and not self.hold_scores

    @property
    def are_logits(self) -> bool:
        """The loss reads several numbers of each sample otherwise than as scores, and no score."""
        kinds = self._kinds
        return kinds == {"numbers"} and not all(output.by_mean for output in self.values())

    @property
    def hold_scores(self) -> bool:
        """Some of them are shaped like scores."""
        return "score" in self._kinds

    @property
    def _kinds(self) -> Set[Kind]:
        return {output.kind for output in self.values()}

    @property
    def likely(self) -> tuple[str, ...]:
        """Those that have to be named, if any, where none is a score for certain."""
        if self.hold_scores:
            return ()
        return tuple(n for n, o in self.items() if o.kind == "image" or not self.are_images)

    def named(self, heads: Sequence[str]) -> tuple[str, ...]:
        """Of its scores those that have to be named; none where their shape and gradient tell."""
        told = {n for n, o in self.items() if o.kind == "score" and o.raised + o.lowered}
        if {*heads} == told and not self.copies:
            return ()
        return tuple(head.partition(" (")[0] for head in heads)


def _kind(leaf: Tensor, batch: int, shape: Sequence[int]) -> Kind:
    if tuple(leaf.shape) == tuple(shape) and leaf.numel() > batch:
        return "image"
    return "score" if resembles_score(leaf, batch) else "numbers"


def _apart(output: Any, leaves: Leaves, numbers: Mapping[str, int]) -> tuple[Any, Leaves]:
    """``output`` with views of ``leaves``: a loss that reads one of several outputs sends nothing
    to the views of those that it was made of, or of the same tensor at another place. Scores are
    copied: where the script changes a view in place, gradients no longer go through it.

    Args:
        numbers: which of the output's leaves they are.
    """
    if len(leaves) < 2:
        return output, leaves
    views = {n: (leaf.clone() if s else leaf.view_as(leaf), s) for n, (leaf, s) in leaves.items()}
    flat, rebuild = flatten(output)
    for name, (view, _) in views.items():
        flat[numbers[name]] = view
    return rebuild(flat), views
