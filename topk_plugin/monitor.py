"""What a launched run says: one header, a log on request, one verdict, and its last error."""

from __future__ import annotations

import difflib
import json
import os
import sys
from pathlib import Path
from typing import TextIO

import torch

from topk_plugin import gate
from topk_plugin.epochs import EpochTracker
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound, TopKError
from topk_plugin.seams import CriticSeam
from topk_plugin.steps import HOW_TO_MARK
from topk_plugin.topk import GeneratorStep

SILENT_STEPS = 200
"""Optimizer steps without a generator step after which a warning is printed, once."""

LOG_EVERY = 100
"""Generator steps between two reads of the device for the log."""


class Monitor:
    """Observes one TopK from the first generator step to the end of the run.

    Args:
        seam: what is gated.
        tracker: what ends the epochs.
        log: JSONL file, one line a generator step, or None.

    Raises:
        ConfigError: the log cannot be written.
    """

    def __init__(self, seam: CriticSeam, tracker: EpochTracker, log: Path | None) -> None:
        self.seam, self.tracker, self.topk = seam, tracker, seam.topk
        self._quiet = os.environ.get("RANK", "0") != "0"  # under torchrun one rank speaks
        self._log: TextIO | None = None
        if log is not None:
            try:
                self._log = log.open("w", encoding="utf-8")
            except OSError as error:
                raise ConfigError(
                    f"--log: cannot write {log}: {error.strerror}; give a file in a folder that "
                    "exists"
                ) from None
        self._unwritten: list[GeneratorStep] = []
        self._headed = self._warned = False
        self.topk.observers.append(self._step_counted)
        self.topk.ledger.on_optimizer_step = self._optimizer_stepped

    def say(self, text: str) -> None:
        """To stderr: standard output belongs to the script."""
        if not self._quiet:
            print(f"top-k {text}", file=sys.stderr, flush=True)

    def _step_counted(self, step: GeneratorStep) -> None:
        if not self._headed:
            self._headed = True
            self.say(f"ACTIVE: {self._header(step)}")
        if self._log is not None:
            self._unwritten.append(step)
            if len(self._unwritten) == LOG_EVERY:
                self._write()

    def _header(self, step: GeneratorStep) -> str:
        config, tally = self.topk.config, step.tally.tolist()
        calls = max(1.0, tally[gate.CALLS])
        batch, k = round(tally[gate.ROWS] / calls), round(tally[gate.KEPT] / calls)
        decay = "never decays"
        if config.gamma < 1 and config.nu < 1:
            each = "epoch" if config.every == "epoch" else f"{config.every} generator steps"
            decay = (
                f"decays x{config.gamma:g} each {each} to {max(1, int(config.nu * batch + 1e-9))}"
            )
        direction = self.topk.direction
        if direction == "undecided":
            direction += " (the loss does not tell yet)"
        return f"{self.seam}, direction {direction}, k {k} of {batch}, {decay}"

    def _optimizer_stepped(self) -> None:
        late = self.topk.ledger.optimizer_steps >= SILENT_STEPS
        if late and not self._headed and not self._warned:
            self._warned = True
            self.say(f"NOT ACTIVE yet: {SILENT_STEPS} optimizer steps, none through {self.seam}")

    def _write(self) -> None:
        if self._log is None or not self._unwritten:
            return
        tallies = torch.stack([step.tally.cpu() for step in self._unwritten]).tolist()
        for step, tally in zip(self._unwritten, tallies, strict=True):
            rows, kept = tally[gate.ROWS], tally[gate.KEPT]
            line = {
                "step": step.step,
                "epoch": step.epoch,
                "batch": round(rows),
                "k": round(kept),
                "kept_score": _mean(tally[gate.KEPT_SUM], kept),
                "dropped_score": _mean(tally[gate.DROPPED_SUM], rows - kept),
                "threshold": _mean(tally[gate.THRESHOLD], tally[gate.CALLS]),
            }
            self._log.write(json.dumps(line) + "\n")
        self._unwritten.clear()
        self._log.flush()

    def close(self, succeeded: bool, verdict: bool = True) -> TopKError | None:
        """Print the ``verdict``; the error to end in, if the run ``succeeded`` without effect."""
        self._write()
        if self._log is not None:
            self._log.close()
        if not verdict:
            return None
        topk, ledger = self.topk, self.topk.ledger
        if topk.steps == topk.first_step:
            if not ledger.optimizer_steps and not ledger.pending:
                self.say(
                    "verdict: no optimizer stepped, so there was nothing to gate (in this process; "
                    "those that the script starts are not covered)"
                )
                return None
            self.say(f"verdict: NOT ACTIVE, {ledger.optimizer_steps} optimizer steps, none gated")
            return self._no_effect() if succeeded else None
        report = topk.report()
        ended = report.epochs + topk.pass_complete - topk.first_epoch
        self.say(
            f"verdict: {report.steps - topk.first_step} generator steps gated, "
            f"{report.dropped} of {report.rows} rows dropped, {ended} epochs ended, last k "
            f"{report.last_k} of {report.last_batch}, {report.nonfinite} non-finite scores"
        )
        if topk.config.gamma < 1 and not ended:
            unfed = "" if self.tracker.fed else " (no DataLoader fed a generator step)"
            self.say(f"verdict: k never decayed{unfed}: pass --every N")
        if report.direction == "undecided":
            self.say(
                "verdict: the loss never told the direction; is it saturated, without a gradient?"
            )
        try:
            topk.check_audits()
            topk.check_direction()
        except TopKError as error:
            return error if succeeded else None
        return None

    def _no_effect(self) -> TopKError:
        path, ledger = self.seam.path, self.topk.ledger
        steps = f"{ledger.optimizer_steps} optimizer steps ran"
        if not self.seam.built:
            built = sorted(
                name for name in self.seam.seen if not name.startswith(("torch.", "torchvision."))
            )
            near = difflib.get_close_matches(str(path), built, n=1, cutoff=0.5)
            module = sys.modules.get(path.module)
            lacks = module is not None and not hasattr(module, path.names[0])
            return SeamNotFound(
                f"--critic {path}: "
                + (f"module {path.module} has no such class" if lacks else "it was never built")
                + f", while {steps}. "
                + (f"Did you mean {near[0]}? " if near else "")
                + f"Modules that were built: {', '.join(built) or 'only those of torch'}."
            )
        waiting = len(ledger.pending or ledger.aside)
        if waiting:
            return NoEffectError(
                f"{waiting} backward passes went through {path}, {steps}, and none of them was of "
                "an optimizer that owns a generator parameter and none of the critic's. "
                + HOW_TO_MARK
            )
        return NoEffectError(
            f"{steps} and no generator step went through {path}: no gradient of its score reached "
            "an nn.Parameter outside it. Expected loss = f(critic(generator(z))), its backward, "
            "and a step of the generator's optimizer. Is this the critic of the generator's loss? "
            "(Copies of a critic and critics that were unpickled are not gated.)"
        )


def _mean(total: float, count: float) -> float | None:
    """None for no rows, or where a score was not finite (JSON has no NaN)."""
    return total / count if count and abs(total) < float("inf") else None
