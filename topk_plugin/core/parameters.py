"""Whose parameters are whose: lists that are made anew only where something in them changed.

A critic is called and an optimizer steps in every iteration, and what they own hardly ever changes;
asking a network of fifty layers for its parameters takes longer than gating it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from topk_plugin.core.sharded import owner_of

GRADIENT: Any = Tensor.grad
"""What gives a tensor's ``.grad``, past whoever watches that of parameters."""


class Owned:
    """Some parameters, at one time; another object once there are others."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        listed = list(parameters)
        self.ids = frozenset(map(id, listed))
        self.alive = True  # else another tensor may have the id of one of them
        alone = weakref.ref(self)

        def gone(_: object) -> None:
            owned = alone()
            if owned is not None:
                owned.alive = False

        self._references = [weakref.ref(parameter, gone) for parameter in listed]

    def __iter__(self) -> Iterator[Tensor]:
        return (p for p in (reference() for reference in self._references) if p is not None)

    @property
    def frozen(self) -> bool:
        """None of them gets a gradient."""
        for reference in self._references:  # a generator takes longer than the answer
            parameter = reference()
            if parameter is not None and parameter.requires_grad:
                return False
        return True


class ModuleParameters:
    """The parameters of one module, which it does not keep alive."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._parts: list[weakref.ref[nn.Module]] = []
        self._entries: list[int] | None = None
        self._owned = Owned(())
        # a class that lists them in its own way may have reasons that are not seen here
        self._plain = type(module).named_parameters is nn.Module.named_parameters

    @property
    def owned(self) -> Owned | None:
        """As it is now: layers may have been added, replaced, or moved. None: it is gone."""
        known = self._plain and self._owned.alive and self._entries is not None
        if not known or self._present() != self._entries:
            module = self._module()
            if module is None:
                return None
            self._parts = [weakref.ref(part) for part in module.modules()]
            self._entries = self._present()
            self._owned = Owned(map(owner_of, module.parameters()))
        return self._owned

    @property
    def modes(self) -> tuple[bool, ...]:
        """Of all its parts as they were listed last, whether they are in train mode."""
        parts = (reference() for reference in self._parts)
        return tuple(part.training for part in parts if part is not None)

    def _present(self) -> list[int] | None:
        """Ids of all that is registered in it; None: a part of it is gone."""
        present: list[int] = []
        for reference in self._parts:
            part = reference()
            if part is None:
                return None
            present += map(id, part._parameters.values())
            present += map(id, part._modules.values())
        return present


_optimizers: weakref.WeakKeyDictionary[Optimizer, tuple[list[int], Owned]] = (
    weakref.WeakKeyDictionary()
)


def owned_by(optimizer: Optimizer) -> Owned:
    """The parameters that ``optimizer`` steps, as its groups say now."""
    entries = [id(p) for group in optimizer.param_groups for p in group["params"]]
    known = _optimizers.get(optimizer)
    if known is not None and known[1].alive and known[0] == entries:
        return known[1]
    owned = Owned(p for group in optimizer.param_groups for p in group["params"])
    _optimizers[optimizer] = entries, owned
    return owned


def way_of(optimizer: Optimizer) -> int:
    """1: it descends, -1: it ascends (``maximize``), 0: some of its groups this, some that."""
    ascends = {bool(group.get("maximize")) for group in optimizer.param_groups}
    return 0 if len(ascends) == 2 else -1 if True in ascends else 1
