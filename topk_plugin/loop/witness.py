"""What else a loop does in the first generator steps of a training, seen and then left alone.

Two things are learned: whether the critic's own steps confirm the direction
(:mod:`~topk_plugin.loop.critic_step`), and whether the generator's loss reads critics that are not
gated (:mod:`~topk_plugin.loop.ungated`). For both the outputs of all modules are looked at, by
a hook that is there from the first generator step until enough was seen: later steps cost nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from topk_plugin.compat import is_compiling
from topk_plugin.core.training import Training
from topk_plugin.core.trees import tree_leaves
from topk_plugin.loop.critic_step import CriticSteps
from topk_plugin.loop.traced import something_is_compiled
from topk_plugin.loop.ungated import Ungated
from topk_plugin.streams import warn
from topk_plugin.topk import TopK

STEPS = 50
"""Generator steps of a training in which anything is looked at, at most."""

ENOUGH = 20
"""Steps of the critic's own that are read, at most."""

LIMIT = 1000
"""Optimizer steps in which the generator's do not come on, after which nothing is looked at."""


class Witness:
    """Watches the loop of one TopK while critics are attached; see :func:`witness_of`.

    Args:
        tell: told of critics that are not gated.
    """

    def __init__(self, topk: TopK, tell: Callable[[str], None]) -> None:
        self.topk = topk
        self.critics: list[weakref.ref[nn.Module]] = []  # that are attached
        self.critic_steps = CriticSteps(topk.trainings)
        self.ungated = Ungated(topk, _attached, tell)
        self.looks = False  # what attached critics return is looked at
        self._others = 0  # optimizer steps since it was begun to look
        self._hook: RemovableHandle | None = None

    def watch(self, critic: nn.Module) -> Callable[[], None]:
        """``critic`` is attached; the returned function says that it no longer is."""
        reference = weakref.ref(critic)
        if not self.critics and self.topk.config.enabled:
            self.topk.after_counting.append(self._step_counted)
            self._look()
        self.critics.append(reference)

        def undo() -> None:
            self.critics.remove(reference)
            told = self.topk.after_counting
            if not self.critics and self._step_counted in told:
                told.remove(self._step_counted)
                self._look_away()

        return undo

    def scored(
        self, critic: nn.Module | None, arguments: Sequence[Any], output: Any,
        places: Sequence[int] = (), training: Training | None = None, rows: slice | None = None,
    ) -> None:  # fmt: skip
        """A call of an attached critic; see :meth:`CriticSteps.scored`."""
        if not self.looks or critic is None:
            return
        self.critic_steps.scored(critic, arguments, places, training, output, rows)
        if places and self.ungated.goes_on:
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(self.ungated.gate_pulled)

    def _step_counted(self) -> None:
        training = self.topk.training
        progress, vote = training.progress, training.vote
        if self._hook is not None:
            self.ungated.step_counted()
        unsure = vote.critic_steps < ENOUGH and (vote.goes_on or not vote.is_auto)
        young = progress.steps - progress.first_step < STEPS and not training.by_hand
        if young and (unsure or self.ungated.goes_on):
            self._look()
            self._look_at_modules()
        else:
            self._look_away()

    def _look(self) -> None:
        if not self.looks:
            self.looks, self._others = True, 0
            self.topk.ledger.after_step.append(self._optimizer_stepped)
            self.topk.ledger.after_zeroing.append(self._zeroed)

    def _look_at_modules(self) -> None:
        # graphs that torch.compile made would be made anew with the hook, and torch warns of hooks
        # where a compiled module is called
        if something_is_compiled():
            self._look_away_from_modules()
        elif self._hook is None:
            self._hook = register_module_forward_hook(self._hearing())

    def _look_away(self) -> None:
        if self.looks:
            self._look_away_from_modules()
            self.looks = False
            self.topk.ledger.after_step.remove(self._optimizer_stepped)
            self.topk.ledger.after_zeroing.remove(self._zeroed)
            self.critic_steps.clear()
            self.ungated.clear()

    def _look_away_from_modules(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _hearing(self) -> Callable[[nn.Module, Any, Any], None]:
        def returned(module: nn.Module, arguments: Any, output: Any) -> None:
            if is_compiling() or torch._C._get_tracing_state():
                return
            self.critic_steps.generated.returned(module, arguments, output)
            if self.ungated.goes_on:
                self.ungated.returned(module, arguments, output)

        return returned

    def _optimizer_stepped(self, optimizer: Optimizer) -> None:
        self.critic_steps.optimizer_stepped(optimizer)
        self._others += 1
        if self._others > LIMIT:
            self._look_away()
        if self.topk.trainings.of_optimizer(optimizer) is None:
            self.ungated.optimizer_stepped(optimizer)

    def _zeroed(self, parameters: set[int]) -> None:
        self.critic_steps.zeroed(parameters)
        self.ungated.zeroed(parameters)


_witnesses: weakref.WeakSet[Witness] = weakref.WeakSet()


def witness_of(topk: TopK, tell: Callable[[str], None]) -> Witness:
    """The one of ``topk``; a new one if nobody has it."""
    for witness in _witnesses:
        if witness.topk is topk:
            return witness
    witness = Witness(topk, tell)
    _witnesses.add(witness)
    return witness


def as_warning(text: str) -> None:
    """What ``attach`` does with what its witness tells."""
    warn(f"attach: {text}", stacklevel=2)


def _attached() -> list[nn.Module]:
    critics = [reference() for witness in list(_witnesses) for reference in witness.critics]
    return [critic for critic in critics if critic is not None]
