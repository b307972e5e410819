"""The generator's steps before its critics were found, which count once they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from topk_plugin.core.arrival import Arrival
from topk_plugin.finding.candidate import Candidate, Settled
from topk_plugin.finding.passes import Passes
from topk_plugin.topk import TopK


@dataclass
class Step:
    """A step of the generator."""

    optimizers: list[Optimizer]  # of one backward: several where parts of it have their own
    through: dict[Candidate, Settled]
    below: bool  # k < B then
    counted: bool  # through another critic, which was found before

    @property
    def tasks(self) -> set[int]:
        """Its backward passes."""
        calls = (call for settled in self.through.values() for call in settled.calls)
        return set().union(*(call.tasks for call in calls))

    def calls_of(self, candidates: Iterable[Candidate]) -> list[Arrival]:
        """Those of ``candidates`` that it went through."""
        return [call for c in candidates if c in self.through for call in self.through[c].calls]


class Backlog:
    """Those of one TopK, while its critics are sought."""

    def __init__(self, topk: TopK) -> None:
        self.topk = topk
        self._steps: list[Step] = []
        self.ungated = 0  # of them, those at k < B whose critic was found

    def add(self, optimizer: Optimizer, through: dict[Candidate, Settled], counted: bool) -> None:
        """A step of ``optimizer``, perhaps after another one's of the same backward.

        Args:
            counted: it was, as the generator's.
        """
        came = [call for settled in through.values() for call in settled.calls]
        below = any(call.training.progress.fraction < 1 for call in came)
        step = Step([optimizer], through, below, counted)
        if self._steps and step.tasks & self._steps[-1].tasks:
            before = self._steps.pop()
            optimizers = [*before.optimizers, optimizer]
            below, counted = before.below or below, before.counted or counted
            step = Step(optimizers, before.through | through, below, counted)
        self._steps.append(step)

    def clear(self) -> None:
        """Forget them."""
        self._steps.clear()

    def any_below(self, fresh: Iterable[Candidate]) -> bool:
        """Whether k < B in one that went through ``fresh``."""
        fresh = list(fresh)
        return any(step.below and step.calls_of(fresh) for step in self._steps)

    def through(self, candidate: Candidate, critic: nn.Module) -> None:
        """The calls of ``candidate`` were those of ``critic``."""
        for step in self._steps:
            for call in step.calls_of([candidate]):
                call.training.critics.add(critic)

    def count(self, fresh: Mapping[Candidate, tuple[str, ...]], passes: Passes) -> None:
        """Count the steps through what is found now, by its heads: nothing was gated in them."""
        steps = [(step, came) for step in self._steps if (came := step.calls_of(fresh))]
        young = {c.training for _, came in steps for c in came if not c.training.progress.begun}
        for training in young:
            training.heads = next(([*heads] for heads in fresh.values() if len(heads) > 1), [])
        for step, came in steps:
            self.ungated += step.below
            known = [call for call in came if step.counted and call.training not in young]
            mine = [call for call in came if not any(call is one for one in known)]
            first, *others = step.optimizers
            if mine:
                step.counted = True
                mine[0].training.counts.ungated += step.below
                self._settle(mine, first)
                for optimizer in others:
                    self.topk.trainings.joined(optimizer)
            for call in known:  # of a step that was counted, when another critic was found by it
                if not step.below:
                    call.training.counts.add(call.training.counts.take([call.choice]))
        for training in young:  # passes that ended before there was anything to count
            for _ in range(passes.ended):
                if self.topk.config.every == "epoch" and not training.progress.counted:
                    training.end_epoch(passes.told_by)
                    training.progress.caught_up += 1

    def _settle(self, calls: list[Arrival], optimizer: Optimizer) -> None:
        """By the run's own ledger, which knows then what it settled last: another optimizer of
        the same backward may be going to step."""
        ledger = self.topk.ledger
        pending, aside = ledger.pending, ledger.aside
        ledger.pending = calls
        ledger.settle(optimizer)
        ledger.pending, ledger.aside = pending, aside
