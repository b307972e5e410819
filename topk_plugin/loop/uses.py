"""Who uses the gradient that calls from some place left in a critic: the place is told."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.core.parameters import owned_by
from topk_plugin.loop.place import unsettled


def in_autocast() -> bool:
    """Whether a block of autocast is open, be it one in which it is disabled."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth > 1


class Uses:
    """Tells the places that are unsettled who reads or replaces a gradient, or is about to step."""

    def __init__(self) -> None:
        # told of parameters, by id, that change inside a block of autocast
        self.in_autocast: list[Callable[[Collection[int]], None]] = []

    def _changing(self, parameters: Collection[int]) -> None:
        for tell in list(self.in_autocast) if in_autocast() else ():
            tell(parameters)

    def read(self, parameter: Tensor) -> None:
        self._changing({id(parameter)})  # perhaps by an optimizer that is written by hand
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
        owned = owned_by(optimizer).ids
        self._changing(owned)
        used = [place for place in unsettled if not place.left.isdisjoint(owned)]
        for place in sorted(used, key=lambda place: place.spared):  # the last ones may raise
            place.used(f"{type(optimizer).__name__} is about to step it")


uses = Uses()
"""Of all critics."""
