"""Who owns what: the optimizers of a process, and the parameters of modules."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from topk_plugin.core.parameters import Owned, owned_by
from topk_plugin.core.sharded import owner_of


class Ownership(NamedTuple):
    """Of one module."""

    parameters: frozenset[int]  # ids
    optimizers: frozenset[int]  # ids of those that own some of them
    pure: bool  # those that have an owner have the same


class Owners:
    """Which optimizers own which parameters, as of now: both may come later."""

    def __init__(self) -> None:
        self._optimizers: weakref.WeakKeyDictionary[Optimizer, Owned]
        self._optimizers = weakref.WeakKeyDictionary()
        self._made_of = -1  # how many optimizers the table was made of; -1: it is out of date
        self._table: dict[int, frozenset[int]] = {}  # by parameter
        self._modules: weakref.WeakKeyDictionary[nn.Module, tuple[object, Ownership]]
        self._modules = weakref.WeakKeyDictionary()

    def take(self, optimizer: Optimizer) -> None:
        """An optimizer was built, or stepped: more may have been added to it."""
        if not hasattr(optimizer, "param_groups"):
            return  # what wraps another may still be built
        owned = owned_by(optimizer)  # another object once there are others
        if self._optimizers.get(optimizer) is not owned:
            self._optimizers[optimizer] = owned
            self._made_of = -1

    def take_all(self) -> None:
        """Take all optimizers that are alive."""
        for one in gc.get_objects():
            # by type: isinstance asks lazy objects for their class, and some warn
            if issubclass(type(one), Optimizer):
                self.take(one)

    def __contains__(self, optimizer: Optimizer) -> bool:
        return optimizer in self._optimizers

    def __len__(self) -> int:
        return len(self._optimizers)

    @property
    def table(self) -> dict[int, frozenset[int]]:
        """The ids of its owners, by the id of each parameter."""
        if self._made_of != len(self._optimizers):  # some may be gone, too
            owners: dict[int, set[int]] = {}
            for optimizer, owned in self._optimizers.items():
                for parameter in owned.ids:
                    owners.setdefault(parameter, set()).add(id(optimizer))
            self._table = {parameter: frozenset(ids) for parameter, ids in owners.items()}
            self._made_of = len(self._optimizers)
        return self._table

    def of(self, module: nn.Module) -> Ownership:
        """Who owns the parameters of ``module``."""
        table = self.table
        known = self._modules.get(module)
        if known is None or known[0] is not table:
            # of a network that FSDP2 shards they are whole ones while it computes
            parameters = frozenset(id(owner_of(p)) for p in module.parameters())
            sets = {table[parameter] for parameter in parameters if parameter in table}
            own = Ownership(parameters, frozenset[int]().union(*sets), len(sets) == 1)
            known = self._modules[module] = table, own
        return known[1]

    def all_of(self, parameters: Iterable[int]) -> frozenset[int]:
        """Ids of the optimizers that own any of them."""
        table = self.table
        return frozenset[int]().union(*(table.get(one, frozenset()) for one in parameters))

    def named(self, ids: Iterable[int]) -> str:
        """Optimizers in words, by their ids."""
        present = {id(one): one for one in self._optimizers}
        names = (type(present[one]).__name__ for one in sorted(ids) if one in present)
        return " and ".join(names)
