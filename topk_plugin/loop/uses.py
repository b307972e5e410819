"""Who uses the gradient that calls from some place left in a critic: the place is told."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.core.parameters import owned_by
from topk_plugin.loop.place import unsettled


class Uses:
    """Tells the places that are unsettled who reads or replaces a gradient, or is about to step."""

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


uses = Uses()
"""Of all critics."""
