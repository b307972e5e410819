"""Every hook: the page that an author of plugins reads.

A plugin is a module or an object whose functions are marked with ``hookimpl``; one that is
installed under the entry-point group ``topk_plugin`` is loaded by itself::

    from topk_plugin import hookimpl

    class HalfAtRandom:
        @hookimpl
        def topk_select(self, scores, k):
            return torch.rand_like(scores).argsort().argsort() < k

    TopK(gamma=0.99, hooks=[HalfAtRandom()])

An implementation takes only the arguments it needs. Of the *first result* hooks the plugins are
asked in turn, the last registered first, until one returns something else than None; the others
call every plugin. Bundled plugins are registered before installed ones, and objects last. Two
environment variables help: ``TOPK_TRACE_PLUGINS=1`` prints every call,
``TOPK_DISABLE_PLUGINS=name,name`` leaves plugins out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple

import pluggy
from torch import Tensor

from topk_plugin.adapter import Adapter
from topk_plugin.config import TopKConfig
from topk_plugin.core.counts import StepTally
from topk_plugin.core.sorted_choice import AnyChoice

GROUP = "topk_plugin"
"""Entry-point group under which a distribution offers its plugins."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Progress(NamedTuple):
    """How far training is."""

    epoch: int  # epochs ended, t >= 0
    steps: int  # generator steps counted


class Call(NamedTuple):
    """One call of the critic in a generator step, on the scores' device."""

    scores: Tensor  # (B,)
    kept: Tensor  # (B,) bool
    labels: Tensor | None = None  # (B,) integers that the critic got beside the samples, if it did


@dataclass(frozen=True, eq=False)
class Selection:
    """What observers are told when a generator step was counted; reading a tensor synchronises.

    Its tensors are computed when they are asked for, then or later.
    """

    step: int  # generator steps so far, this one included
    epoch: int  # ended epochs while it ran
    batch: int  # rows, over all critic calls of the step; 0 for topk(scores): see tally[ROWS]
    counted: StepTally  # see tally
    choices: Sequence[AnyChoice]  # of its critic calls, see calls
    training: int = 1  # of how many in this process; each has its own steps and epochs
    labels: Sequence[Tensor | None] = ()  # of each choice; none at all where none is known

    @property
    def tally(self) -> Tensor:
        """(TALLY_SIZE,) float64, see :mod:`topk_plugin.core.choice`; a ballot only while voting."""
        return self.counted.value

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Those of the critic; none where the step was compiled or replayed."""
        labels = self.labels or repeat(None)
        return tuple(
            Call(choice.scores, choice.kept, known)
            for choice, known in zip(self.choices, labels, strict=False)
        )


class Hooks:
    """The specifications. Nothing here may change a tensor in place.

    Tensors are detached, but for those of ``topk_scores``.
    """

    @hookspec
    def topk_adapters(self) -> Sequence[Adapter]:  # type: ignore[empty-body]
        """Adapters for third-party repositories, by whose names `topk run --adapter` finds them."""

    @hookspec(firstresult=True)
    def topk_scores(self, output: Any) -> Tensor | Sequence[Tensor] | None:
        """The scores in a critic's output: a floating tensor of it with B rows, or several.

        Several share one ranking, by their average. Called at each gated call of the critic,
        before the loss. Where every plugin returns None the rule of
        :func:`topk_plugin.core.ranking.score_heads` holds.

        The scores are replaced by gated ones, so they have to be the output's own tensors, and
        the output a tensor, tuple, list, dict, dataclass, namespace, of a subclass of list, dict or
        UserDict, or of a class that is registered with ``torch.utils._pytree``.
        """

    @hookspec(firstresult=True)
    def topk_fraction(self, progress: Progress, config: TopKConfig) -> float | None:
        """Fraction of a batch that is kept, in (0, 1].

        Called on the host, when a TopK is built or loaded and when an epoch ends. Built in:
        ``max(gamma**epoch, nu)`` (paper, section 3.2), unless ``restore`` takes it back to 1.

        Args:
            progress: epochs ended, and generator steps counted by then; at least 0.
            config: all settings, within their ranges.
        """

    @hookspec(firstresult=True)
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor | None:
        """Which rows of a batch the generator learns from: a mask (B,) of bool.

        Called in the backward of each generator step, so it must not wait for the device: no
        ``.item()``, no branch on a tensor, no shape that depends on k. Kept rows weigh B over
        their number (``reduction="mean"``). Built in: the k highest (paper, section 3.3);
        at k = B every row has to be kept.

        Args:
            scores: (B,), turned so that higher is more realistic; NaN possible.
            k: 0-d float64 on the same device, a whole number in 1 ... B.
        """

    @hookspec
    def topk_selected(self, selection: Selection) -> None:
        """A generator step was counted, after its optimizer stepped. For observers.

        Args:
            selection: its scores and kept rows, on the device. To keep it is to keep its scores.
        """

    @hookspec
    def topk_epoch_ended(self, progress: Progress) -> None:
        """An epoch ended and k has decayed; ``progress.epoch`` counts it. For observers."""
