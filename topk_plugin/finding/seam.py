"""The seam where nothing is named: the critics are found."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from topk_plugin.errors import NoEffectError, TopKError
from topk_plugin.finding import words
from topk_plugin.finding.finder import Finder
from topk_plugin.topk import TopK
from topk_plugin.upstream.checkout import Upstream


class FindingSeam:
    """Finds the critics of a run, and attaches them; from ``apply()`` to ``undo()``.

    Args:
        upstream: what its repository needs to run.
    """

    def __init__(self, topk: TopK, upstream: Upstream | None = None) -> None:
        self.topk, self.finder, self._upstream = topk, Finder(topk), upstream
        self.adapter, self.planned_epochs = None, None
        self.notes: list[str] = []

    def __str__(self) -> str:
        return str(self.finder)

    def apply(self) -> None:
        """Begin to look."""
        if self._upstream is not None:
            self._upstream.install()
        self.finder.start()

    def undo(self) -> None:
        """Put everything back as it was; twice is fine."""
        self.finder.stop()
        if self._upstream is not None:
            self._upstream.remove()

    def audited(self, loss: Any, output: Any) -> AbstractContextManager[None]:
        """For `topk check`: neither the loss nor the source is seen here."""
        return nullcontext()

    def first_step(self) -> list[str]:
        """See :meth:`Seam.first_step`: nothing was named that could be missing."""
        return []

    @property
    def left_out(self) -> list[str]:
        """See :class:`Seam`."""
        return self.finder.left_out()

    def broken(self) -> TopKError | None:
        """What was raised when the first pass ended, if the script went on; or that nothing was
        gated after critics were found."""
        return self.finder.refused or self.finder.lost()

    def no_effect(self) -> TopKError:
        """Why no generator step was gated, after optimizers stepped."""
        if self.finder.found:  # in the last step of an audit
            return NoEffectError(words.too_late(str(self.finder)))
        return self.finder.refused or self.finder.nothing()
