"""Critics that were found, and others like them that come after the search."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from topk_plugin.finding.candidate import Candidate
from topk_plugin.finding.identity import Identity, Places, like, plain
from topk_plugin.finding.owners import Owners
from topk_plugin.loop.attach import Attachment
from topk_plugin.loop.traced import inside
from topk_plugin.topk import TopK


class Found(NamedTuple):
    """A critic that was found."""

    title: str
    like: str  # its kind
    identity: Identity
    attachment: Attachment
    critic: weakref.ref[nn.Module]
    flag: str | None  # that names it


class Latecomers:
    """Critics that are known before a step shows them: those that a checkpoint says, and those
    that the first pass over the data did not show, of several that take turns or built later.

    What has the class and the shapes of a critic that was found is one at its first call, since
    the steps before would go ungated; others of its class are looked at.
    """

    def __init__(self, topk: TopK, owners: Owners, places: Places) -> None:
        self.topk, self.owners, self.places = topk, owners, places
        self._searched = False  # a first pass is over
        self._judged: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._asked: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def judged(self, candidates: Iterable[Candidate]) -> None:
        """A pass is over: they are no critics, if generator steps went through them."""
        self._searched = True
        scorers = (one.scorer() for one in candidates if one.steps)
        self._judged.update(module for module in scorers if module is not None)

    def may_be(self, module: nn.Module, found: Sequence[Found]) -> bool:
        """Whether to look at a call of ``module``: at one of each."""
        inner = plain(module)
        if (
            inner in self._asked
            or inner in self._judged
            or inside.a_critic
            or self.topk.is_paused
            or torch._C._get_tracing_state() is not None
            or not self.owners.of(module).optimizers
            or uninitialized(inner)
        ):
            return False
        self._asked.add(inner)
        return like(inner) in {one.like for one in found}

    def due(self, module: nn.Module, found: Sequence[Found]) -> list[Identity]:
        """As what ``module`` has to be attached before this call of it."""
        if uninitialized(plain(module)):
            return []  # the call shapes it
        place, present = self.places.of(module), [one.identity for one in found]
        said = [Identity.of(saved) for saved in self.topk.found]
        missing = [one for one in said if one[:2] == place[:2] and one not in present]
        if missing or any(one[:2] == place[:2] for one in present):
            return missing
        own = self.owners.of(module).optimizers
        generators = {id(one) for t in self.topk.trainings.all for one in t.optimizers}
        if self._searched and own and not own & generators and plain(module) not in self._judged:
            return [one for one in present if one.kind == place.kind][:1]
        return []


def uninitialized(module: nn.Module) -> bool:
    """Whether a parameter gets its shape by the first call only."""
    return any(map(is_lazy, module.parameters()))
