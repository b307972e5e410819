"""The ways into a loop that is not ours: where top-k goes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from topk_plugin.adapter import Adapter
from topk_plugin.errors import TopKError
from topk_plugin.topk import TopK


class Seam(Protocol):
    """One way in, for one TopK, from ``apply()`` to ``undo()``; ``str()`` names what it gates."""

    topk: TopK

    @property
    def adapter(self) -> Adapter | None:
        """What it goes by, if that is an adapter."""

    @property
    def planned_epochs(self) -> float | None:
        """Of this run, where the upstream says so."""

    @property
    def notes(self) -> list[str]:
        """Said with the header; what is added later, with the verdict."""

    @property
    def left_out(self) -> list[str]:
        """Said with the verdict, where generator steps were gated: what was named, and was not."""

    def first_step(self) -> list[str]:
        """What is to be said when an optimizer steps for the first time.

        Raises:
            SeamNotFound: what was named can never be found.
        """

    def apply(self) -> None:
        """Go in."""

    def undo(self) -> None:
        """Put everything back as it was; twice is fine."""

    def broken(self) -> TopKError | None:
        """Whether top-k was pushed out in the middle of the run."""

    def no_effect(self) -> TopKError:
        """Why no generator step was gated, after optimizers stepped."""

    def audited(
        self, loss: Callable[[Callable[[Any], Any], Any], Any], output: Callable[[Any], None]
    ) -> AbstractContextManager[None]:
        """For `topk check`; see CallSeam.audited()."""
