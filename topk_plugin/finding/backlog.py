"""The generator's steps before its critics were found, which count once they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from topk_plugin.core.ledger import Arrival
from topk_plugin.finding.candidate import Candidate, Settled
from topk_plugin.finding.passes import Passes
from topk_plugin.topk import TopK


class Step(NamedTuple):
    """A step of the generator."""

    optimizer: Optimizer
    through: dict[Candidate, Settled]

    def calls_of(self, candidate: Candidate) -> list[Arrival]:
        """Those that it went through."""
        return self.through[candidate].calls if candidate in self.through else []


class Backlog:
    """Those of one TopK, while its critics are sought."""

    def __init__(self, topk: TopK) -> None:
        self.topk = topk
        self.steps: list[Step] = []
        self.ungated = 0  # of them, those at k < B

    def through(self, candidate: Candidate, critic: nn.Module) -> None:
        """The calls of ``candidate`` were those of ``critic``."""
        for step in self.steps:
            for call in step.calls_of(candidate):
                call.training.critics.add(critic)

    def count(self, fresh: Mapping[Candidate, tuple[str, ...]], passes: Passes) -> None:
        """Count the steps through what is found now, by its heads: nothing was gated in them."""
        came = [[call for one in fresh for call in step.calls_of(one)] for step in self.steps]
        young = {c.training for calls in came for c in calls if not c.training.progress.begun}
        for training in young:
            training.heads = next(([*heads] for heads in fresh.values() if len(heads) > 1), [])
        for step, calls in zip(self.steps, came, strict=True):
            self.ungated += any(call.training.progress.fraction < 1 for call in calls)
            mine = [call for call in calls if call.training in young]
            if mine:
                self.topk.ledger.counted(mine, [call.choice for call in mine], step.optimizer)
            for call in calls:  # of a step that another critic was found by, at k = B
                if call.training not in young and call.training.progress.fraction == 1:
                    call.training.counts.add(call.training.counts.take([call.choice]))
        for training in young:  # passes that ended before there was anything to count
            for _ in range(passes.ended):
                if self.topk.config.every == "epoch" and not training.progress.counted:
                    training.end_epoch(passes.told_by)
