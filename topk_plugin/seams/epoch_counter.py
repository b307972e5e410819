"""Epochs by a counter that an upstream keeps."""

from __future__ import annotations

from collections.abc import Sequence

from topk_plugin.errors import ConfigError
from topk_plugin.loop.resume import ResumeRecord
from topk_plugin.streams import count
from topk_plugin.topk import TopK


class EpochCounter:
    """Ends ``topk``'s epochs as the counter of ``upstream`` says."""

    def __init__(self, topk: TopK, upstream: str) -> None:
        self.topk, self.upstream = topk, upstream
        self._origin = topk.config.start_epoch  # epochs before upstream's first step
        self._step = -1  # that upstream was at; -1: the counter was not read yet

    def begin_at(self, epoch: int, steps: int, records: Sequence[ResumeRecord]) -> None:
        """Training begins, or goes on after ``steps`` generator steps.

        Args:
            epoch: epochs that ended since upstream's first step.
            steps: generator steps since then.
            records: of the critics, which may have loaded a checkpoint.

        Raises:
            ConfigError: ``start_epoch`` says something else.
        """
        config, topk = self.topk.config, self.topk
        if config.every != "epoch":
            epoch = steps // config.every
        if topk.training.progress.pass_complete:
            topk.end_epoch()  # the last one of an earlier training in this process
        restored = any(record.found for record in records)
        if restored or steps < topk.steps:
            topk.trainings.begin()
        for record in records:  # what they loaded is accounted for, with a record or without
            record.loaded = record.found = False
        if not steps:
            self._origin = config.start_epoch if topk.training.number == 1 else 0
        elif restored:
            # the checkpoint's record knows of steps that were skipped, and of start_epoch
            self._origin = topk.epoch - epoch
            return
        elif config.start_epoch in (0, epoch):
            self._origin = 0
        else:
            raise ConfigError(
                f"start_epoch: found {config.start_epoch}, but {self.upstream} goes on "
                f"from its generator step {steps}, after {count(epoch, 'epoch')}; leave it out"
            )
        topk.begin_at(self._origin + epoch, steps)

    def reach(self, epoch: int, complete: bool = False) -> None:
        """``epoch`` epochs have ended since upstream's first step.

        Args:
            complete: the last batch of the present one was delivered.
        """
        topk = self.topk
        topk.training.progress.told_by_upstream(f"by {self.upstream}'s own counter")
        if topk.config.every != "epoch":
            return
        while topk.epoch < self._origin + epoch:
            topk.end_epoch()
        topk.training.progress.batch_delivered(last=complete)

    def count(self, epoch: int, step: int, records: Sequence[ResumeRecord]) -> None:
        """Both in one, where a line in the source tells both numbers before each step.

        Args:
            epoch: since upstream's first step.
            step: since then, resumed ones included.
            records: see :meth:`begin_at`.
        """
        if step < self._step or self._step < 0:  # the first one, or another training's
            self.begin_at(epoch, step, records)
        self._step = step
        self.reach(epoch)
