"""A DataLoader that a user named as the only one whose passes end epochs."""

from __future__ import annotations

from typing import Any

from topk_plugin.errors import NoEffectError
from topk_plugin.loop.passes import Pass, length_of, loaders_in
from topk_plugin.streams import count


class NamedLoader:
    """The loader that a user named, as the only one whose passes end epochs.

    Args:
        loader: a DataLoader, or an object that holds one.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.heard = False  # a pass of its data was
        self._itself = False  # ... of the very loader, or of one that it holds
        self._steps = 0  # generator steps before it was heard

    def delivers(self, one: Pass) -> bool:
        """Whether a pass is its own, or over its data set as long as it delivers nothing itself."""
        delivering = one.loader() if one.loader is not None else None
        mine = list(loaders_in(self.loader))
        own = any(delivering is loader for loader in mine)
        self._itself |= own
        own |= not self._itself and any(one.data == id(loader.dataset) for loader in mine)
        self.heard |= own
        return own

    def require(self, another: bool) -> None:
        """A generator step was fed by no batch of it; perhaps by ``another`` loader's.

        Raises:
            NoEffectError: it is not the loader that feeds, since another one does, or since a pass
                of it would have ended.
        """
        if self.heard:
            return
        self._steps += 1
        longest = max((length_of(loader) or 0 for loader in loaders_in(self.loader)), default=0)
        if another or 0 < longest < self._steps:
            self._refuse(another)

    def check(self) -> None:
        """Raises NoEffectError where generator steps were counted and it delivered nothing."""
        if self._steps and not self.heard:
            self._refuse(False)

    def _refuse(self, another: bool) -> None:
        instead = "another DataLoader did" if another else "no DataLoader did"
        raise NoEffectError(
            f"attach: the {type(self.loader).__name__} given as the loader delivered no batch for "
            f"{count(self._steps, 'generator step')}; {instead}, so no epoch would ever end. Give "
            "it the DataLoader that the loop iterates while it is attached, or leave it out and "
            "call topk.end_epoch() after each pass."
        )
