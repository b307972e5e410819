"""A critic that was found, and is gated."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from topk_plugin.finding.identity import Identity, called, flag, like
from topk_plugin.loop.attach import Attachment
from topk_plugin.loop.intercept import is_intercepted
from topk_plugin.loop.wrappers import entrances
from topk_plugin.topk import TopK


class Found(NamedTuple):
    """A critic that was found."""

    title: str
    like: str  # its kind
    identity: Identity
    attachment: Attachment
    critic: weakref.ref[nn.Module]
    flag: str | None  # that names it
    since: int = 0  # the first generator step that is gated, where others were before

    @property
    def shown(self) -> str:
        """Its name, and the outputs that are scores, where they have to be named."""
        heads = self.identity.heads
        return f"{self.title}={','.join(heads)}" if heads else self.title


def gate(
    owner: nn.Module, called_by: Iterable[nn.Module], identity: Identity, topk: TopK, since: int
) -> Found:
    """Attach the critic ``owner``.

    Args:
        called_by: the modules that are called for it.
        since: see :class:`Found`.
    """
    modules = {id(m): m for one in called_by for m in entrances(one)}
    free = [module for module in modules.values() if not is_intercepted(module)]
    attachment = Attachment(free, owner, topk, heads=identity.heads)
    attachment.heads.seen = attachment.heads.found = True
    title, named = called(owner, identity.part), flag(owner, identity.part, identity.heads)
    return Found(title, like(owner), identity, attachment, weakref.ref(owner), named, since)
