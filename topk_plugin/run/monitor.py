"""What a launched run says: one header, a log on request, one verdict, and its last error.

Each process that trains has its own. Of the ranks of one training only rank 0 speaks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed

from topk_plugin import streams
from topk_plugin.core.choice import CALLS, DROPPED_SUM, KEPT, KEPT_SUM, ROWS, THRESHOLD
from topk_plugin.core.schedule import k_of
from topk_plugin.core.training import Training
from topk_plugin.errors import ConfigError, NoEffectError, TopKError
from topk_plugin.hooks import Selection
from topk_plugin.loop.coupling_probe import CouplingProbe, coupled_rows
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.run.children import ChildReport
from topk_plugin.run.verdict import Before, lines_of
from topk_plugin.seams import Seam
from topk_plugin.streams import count

SILENT_STEPS = 200
"""Optimizer steps without a generator step after which a warning is printed, once; or else when a
pass over the data ended without one."""

UNFED_STEPS = 100
"""Generator steps without a DataLoader after which it is said, once, that k stays."""

LOG_EVERY = 100
"""Generator steps between two reads of the device for the log."""


class Monitor:
    """Observes one TopK from the first generator step to the end of the run.

    Args:
        seam: what is gated.
        tracker: what ends the epochs, unless an upstream counter does.
        log: JSONL file, one line a generator step, or None.
        begun: called at the process's first optimizer step.
        child: this process was started by a launched script: it says which one it is, and nothing
            where no optimizer steps.

    Raises:
        ConfigError: the log cannot be written.
    """

    def __init__(
        self,
        seam: Seam,
        tracker: EpochTracker,
        log: Path | None,
        begun: Callable[[], None] = lambda: None,
        child: bool = False,
    ) -> None:
        self.seam, self.tracker, self.topk, self.child = seam, tracker, seam.topk, child
        self._begun = begun
        self._rank: int | None = None  # of torch.distributed; known also when its group is gone
        # rows, dropped, nonfinite of each training in other processes
        self._before: dict[Training, Before] = {}
        self._at_fork: dict[Training, Before] = {}
        self._log = None if log is None else log.absolute()
        self._unwritten: list[Selection] = []
        self._headed = 0  # trainings whose header was printed
        self._noted = 0  # notes of the seam that were printed
        self._warned = False
        self._coupled: dict[int, str] = {}  # of trainings by number, the operation that does it
        self._probe = CouplingProbe(self.topk, self._rows_coupled)
        self.topk.observers.append(self._step_counted)
        self.topk.ledger.on_optimizer_step = self._optimizer_stepped
        if self._log is not None and not child and self._speaks():
            try:
                self._log.write_bytes(b"")
            except OSError as error:
                raise ConfigError(
                    f"--log: cannot write {log}: {error.strerror}; give a file in a folder that "
                    "exists"
                ) from None

    @property
    def steps(self) -> int:
        """Generator steps gated in this process."""
        trainings = self.topk.trainings
        return trainings.steps - sum(one.counts.ungated for one in trainings.all)

    def _speaks(self) -> bool:
        if distributed.is_available() and distributed.is_initialized():
            self._rank = distributed.get_rank() if distributed.get_world_size() > 1 else None
        return not self._rank if self._rank is not None else os.environ.get("RANK", "0") == "0"

    @property
    def process(self) -> str:
        """This process, in words."""
        return f"process {os.getpid()}" if self._rank is None else f"rank {self._rank}"

    def say(self, text: str) -> None:
        """To stderr: standard output belongs to the script."""
        if self._speaks():
            who = f"({self.process}) " if self.child else ""
            streams.say(f"top-k {who}{text}")

    def forking(self) -> None:
        """This process is about to be forked."""
        for training in self.topk.trainings.all if self.steps else ():
            report = self.topk.report(training)  # where the device can be read
            self._at_fork[training] = report.rows, report.dropped, report.nonfinite

    def forked(self) -> None:
        """This process is a fork: what was counted so far is the other one's."""
        topk = self.topk
        for training in topk.trainings.all:
            training.progress.forked()
            training.counts.spared = training.counts.ungated = 0
        topk.ledger.optimizer_steps = 0
        self.tracker.fed = False
        self.child, self._before = True, {**self._at_fork}
        self._headed, self._warned = topk.training.number - 1, False
        self._unwritten.clear()

    def _step_counted(self, step: Selection) -> None:
        if step.training > self._headed:
            if not self._headed:
                self._say_notes()
            self._headed = step.training
            which = f", training {step.training}" if step.training > 1 else ""
            self.say(f"ACTIVE{which}: {self._header(step)}")
            self._probe.start()
        unfed = self.tracker.unfed == UNFED_STEPS and not self.tracker.fed
        if unfed and self.topk.config.gamma < 1:
            self.say(
                f"note: no DataLoader fed any of {UNFED_STEPS} generator steps, so no epoch ends "
                "and k stays; where none will, --every N counts N steps as one"
            )
        if self._log is not None and self._speaks():
            self._unwritten.append(step)
            if len(self._unwritten) == LOG_EVERY:
                self._write()

    def _say_notes(self, origin: str = "") -> None:
        for note in self.seam.notes[self._noted :]:
            self.say(f"{origin}{note}")
        self._noted = len(self.seam.notes)

    def _header(self, step: Selection) -> str:
        config, tally = self.topk.config, step.tally.tolist()
        calls = max(1.0, tally[CALLS])
        batch, k = round(tally[ROWS] / calls), round(tally[KEPT] / calls)
        if self.topk.training.counts.ungated:  # nothing was dropped yet, though k is below
            k = k_of(self.topk.fraction, batch)
        scope, decay = self.topk.scope, "never decays"
        kept = scope.kept_of(k, batch, self.topk.fraction, round(calls))
        if config.gamma < 1 and config.nu < 1:
            each = "epoch" if config.every == "epoch" else count(config.every, "generator step")
            least = k_of(config.nu, batch) if scope.batches == 1 else f"{config.nu:g} of them"
            decay = f"decays x{config.gamma:g} each {each} to {least}"
            if config.restore:
                unit = "epoch" if config.every == "epoch" else "decay"
                decay += " until {0} {1}, back to B at {0} {2}".format(unit, *config.restore)
        direction = self.topk.direction
        if direction == "undecided":
            direction += " (the loss does not tell yet)"
        heads = self.topk.training.heads
        if len(heads) > 1:
            decay += f", ranked by the mean of the heads {', '.join(heads)}"
        plugins = f", with plugin {', '.join(self.topk.plugins)}" if self.topk.plugins else ""
        return f"{self.seam}, direction {direction}, {kept}, {decay}{plugins}"

    def _rows_coupled(self, name: str) -> None:
        if name not in self._coupled.values():
            self.say(f"note: {coupled_rows(name)}; `topk check` says by how much it differs")
        self._coupled[self._headed] = name

    def _optimizer_stepped(self) -> None:
        steps = self.topk.ledger.optimizer_steps
        if steps == 1:
            self._speaks()  # ask the rank while there is one
            self._begun()
            for line in self.seam.first_step():
                self.say(line)
        if self._headed or self._warned:
            return
        if steps >= SILENT_STEPS or self.tracker.idle:
            self._warned = True
            self.say(f"NOT ACTIVE yet: {self.seam.no_effect()}")

    def _write(self) -> None:
        if self._log is None or not self._unwritten:
            return
        tallies = torch.stack([step.tally.cpu() for step in self._unwritten]).tolist()
        lines = []
        for step, tally in zip(self._unwritten, tallies, strict=True):
            rows, kept = tally[ROWS], tally[KEPT]
            line = {
                "step": step.step,
                "epoch": step.epoch,
                "batch": round(rows),
                "k": round(kept),
                "kept_score": _mean(tally[KEPT_SUM], kept),
                "dropped_score": _mean(tally[DROPPED_SUM], rows - kept),
                "threshold": _mean(tally[THRESHOLD], tally[CALLS]),
            }
            if step.training > 1:
                line["training"] = step.training
            if self.child and self._rank is None:  # others may train something else meanwhile
                line["process"] = os.getpid()
            lines.append(json.dumps(line) + "\n")
        self._unwritten.clear()
        with self._log.open("ab", buffering=0) as log:  # whole lines, whoever else writes there
            log.write("".join(lines).encode())

    def close(
        self, succeeded: bool, verdict: bool = True, children: Sequence[ChildReport] = ()
    ) -> TopKError | None:
        """Print the ``verdict``; the error to end in, if the run ``succeeded`` without effect.

        Args:
            children: reports of the processes that the script started. The error that one of them
                ended in is the run's, too.
        """
        self._write()
        self._probe.stop()
        error = self._verdict(succeeded, children) if verdict else None
        if succeeded:  # the script swallowed it
            error = next(iter(self.topk.hook_errors), self.topk.ledger.failure) or error
        of_children = (child.error for child in children if succeeded or child.fatal)
        return error or next(filter(None, of_children), None)

    def _verdict(self, succeeded: bool, children: Sequence[ChildReport]) -> TopKError | None:
        topk, ledger = self.topk, self.topk.ledger
        if not self.steps:
            if not ledger.optimizer_steps and (self.child or not ledger.pending):
                if not self.child:
                    self.say(f"verdict: {_of_children(children)}")
                return None
            ran = count(ledger.optimizer_steps, "optimizer step")
            self.say(f"verdict: NOT ACTIVE, {ran}, none gated")
            return self.seam.no_effect() if succeeded else None
        begun = [training for training in topk.trainings.all if training.progress.begun]
        for training in begun:
            which = f", training {training.number}" if len(topk.trainings.all) > 1 else ""
            before = self._before.get(training, (0, 0, 0))
            coupled = self._coupled.get(training.number, "")
            for line in lines_of(training, self.tracker, before, coupled):
                self.say(f"verdict{which}: {line}")
        for line in self.seam.left_out:
            self.say(f"verdict: {line}")
        self._say_notes("verdict: ")
        try:
            self.tracker.raise_failure()
            topk.check()
        except TopKError as error:
            return error if succeeded else None
        decays = succeeded and topk.config.gamma < 1
        if begun and decays and not any(training.can_drop for training in begun):
            rows = max(training.counts.largest for training in begun)
            return NoEffectError(
                f"k could never fall below the batch: found at most {count(rows, 'row')} "
                f"in a critic call and nu = {topk.config.nu:g}, so top-k did nothing. Expected a "
                "batch of two rows at least, and nu < 1; accumulating gradients over several "
                "batches does not help, since each ranks its own rows"
            )
        broken = self.seam.broken()
        if broken is not None:
            self.say(f"verdict: {broken}")
        return broken if succeeded else None


def _of_children(children: Sequence[ChildReport]) -> str:
    """What is known of the processes that a script started which trained nothing itself."""
    if not children:
        return "no optimizer stepped in this process, and no process that it started reported one"
    ended = [child for child in children if child.ended]
    gated = [child for child in ended if child.steps]
    parts = []
    if gated:
        steps = sum(child.steps for child in gated)
        parts.append(f"{count(len(gated), 'process')} gated, {count(steps, 'generator step')}")
    if len(gated) < len(ended):
        names = ", ".join(child.process for child in ended if not child.steps)
        parts.append(f"NOT ACTIVE in {names}")
    if len(ended) < len(children):
        parts.append(
            f"{count(len(children) - len(ended), 'process')} with optimizer steps left no verdict "
            "(ended from outside, or still running)"
        )
    return "; ".join(parts)


def _mean(total: float, count: float) -> float | None:
    """None for no rows, or where a score was not finite (JSON has no NaN)."""
    return total / count if count and abs(total) < float("inf") else None
