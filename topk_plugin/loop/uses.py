"""Who uses the gradient that calls from some place left in a critic: the place is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.compat import GradientEdge
from topk_plugin.core.graph import LiveIds, behind
from topk_plugin.core.parameters import Owned, owned_by
from topk_plugin.loop.place import Place, unsettled

SPARED = "topk_plugin.spared"
"""Under this name a node that a spared call gave knows its place, and what was frozen in it."""


class Uses:
    """Tells the places that are unsettled who reads or replaces a gradient, or is about to step."""

    def __init__(self) -> None:
        self._frozen = LiveIds()  # parameters of critics that were spared

    def read(self, parameter: Tensor) -> None:
        for place in list(unsettled):
            if place.reached and id(parameter) in place.left:
                place.used("its .grad is read")

    def replaced(self, parameter: Tensor) -> None:
        self.zeroed({id(parameter)})

    def zeroed(self, gone: set[int]) -> None:
        for place in list(unsettled):
            if not place.left.isdisjoint(gone):
                place.thrown_away(gone)

    def stepping(self, optimizer: Optimizer) -> None:
        if not unsettled:
            return
        owned = owned_by(optimizer).ids
        used = [place for place in unsettled if not place.left.isdisjoint(owned)]
        for place in sorted(used, key=lambda place: place.spared):  # the last ones may raise
            place.used(f"{type(optimizer).__name__} is about to step it")

    def spared(
        self, place: Place, owned: Owned, frozen: Sequence[Tensor], made: Iterable[Any]
    ) -> None:
        """A call from ``place`` gave what nodes ``made``, with ``frozen``, of those ``owned``."""
        self._frozen.take_owned(owned)
        for node in made:
            node.metadata[SPARED] = place, frozen  # as long as the graph lives

    def asked(self, roots: Sequence[Any], inputs: Sequence[Any]) -> None:
        """A backward from ``roots`` to ``inputs`` is about to run."""
        wanted = self._frozen.intersection(map(id, inputs))
        if not wanted:
            return
        nodes = (one.node if isinstance(one, GradientEdge) else one.grad_fn for one in roots)
        node: Any
        for node in behind(nodes):
            place, frozen = node.metadata.get(SPARED, (None, ()))
            if place is not None and not wanted.isdisjoint(map(id, frozen)):
                place.missing("autograd is asked for it")


uses = Uses()
"""Of all critics."""
