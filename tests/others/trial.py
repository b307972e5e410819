"""One script, run plainly, with top-k by hand, and by `topk run`; what was said, and how far apart
the final weights are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from others.rows import HERE, OURS, Row, extra

SETTINGS = ("--gamma", "0.8", "--nu", "0.5")
SAME = 1e-9
"""How far the weights may be from those of top-k by hand, in float64."""
HEADER = re.compile(r"top-k ACTIVE: (?:found )?critics? (.+?), direction ")
VERDICT = re.compile(
    r"^top-k verdict: .* (\d+ of \d+) rows dropped, (\d+) epochs? ended.*; direction (\w+)", re.M
)
LIMIT = 600  # seconds a process
Weights = list[np.ndarray]


class Failed(Exception):
    """A process ended otherwise than it should; its last words."""


@dataclass
class Outcome:
    """Of one row."""

    row: Row
    found: str = ""  # as the header said it
    direction: str = ""
    dropped: str = ""
    epochs: str = ""
    error: float = float("nan")  # of the weights, to those of top-k by hand
    changed: float = float("nan")  # by top-k by hand
    typed: str = ""  # the flags that the error asked for, and that were typed then
    wrong: str = ""  # what is, in words; empty: nothing
    said: str = ""  # by the last run

    def line(self) -> str:
        """For the table."""
        found = f"asks; typed {self.typed}" if self.typed else self.found or "asks"
        far = [f"{x:.0e}" if x == x else "-" for x in (self.error, self.changed)]
        numbers = f"{self.dropped or '-':>12} {self.epochs or '-':>6}  {far[0]:>8}  {far[1]:>8}"
        return f"{self.row.name:24} {numbers}  {self.direction:4} {found}  {self.wrong}".rstrip()


HEADING = (
    f"{'training':24} {'dropped':>12} {'epochs':>6}  {'to hand':>8}  {'plain':>8}  real found\n"
    + "-" * 110
)


class Trial:
    """Runs one row in a folder of its own."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, source = row, row.origin.checkout()
        ours = row.script.startswith(OURS)
        self.script = (HERE if ours or source is None else source) / row.script
        self.folder = folder / row.script.rpartition("/")[0] if row.origin.own_folder else folder
        self.folder.mkdir(parents=True)
        self.path = [HERE / "startup", *([source] if source else []), *extra()]
        row.data(folder / "data")

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status and what was said of ``python COMMAND SCRIPT ARGUMENTS``."""
        weights = self.folder / "weights.npz"
        weights.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "out", ignore_errors=True)  # where rows say that outputs go
        kept = {name: v for name, v in os.environ.items() if not name.startswith("TOPK_")}
        env = kept | {
            "PYTHONPATH": os.pathsep.join(map(str, self.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OTHERS_WEIGHTS": str(weights),
            "OTHERS_SHIMS": " ".join(self.row.shims),
            "OTHERS_THIN": str(self.row.thin),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [sys.executable, *command, str(self.script), *self.row.arguments.split()],
            cwd=self.folder, env=env, timeout=LIMIT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        if "Error in sitecustomize" in done.stderr:  # Python goes on without it
            raise Failed(done.stderr[:2000])
        return done.returncode, done.stderr

    def weights(self, *command: str) -> Weights:
        """All that is trained, after a run that has to succeed."""
        status, said = self.run(*command)
        if status:
            raise Failed(f"{command[:1]} ended with {status}: {said[-2000:]}")
        return self.written()

    def written(self) -> Weights:
        with np.load(self.folder / "weights.npz") as file:
            return list(file.values())

    def topk(self, *flags: str) -> tuple[int, str]:
        """Of `topk run FLAGS -- SCRIPT ARGUMENTS`."""
        own = (*SETTINGS, *self.row.flags.split(), *flags)
        return self.run("-m", "topk_plugin", "run", *own, "--")


def difference(a: Weights, b: Weights) -> float:
    """The largest one of any weight.

    Not of biases: before an InstanceNorm their gradients are rounding, which Adam magnifies.
    """
    assert {x.dtype.name for x in (*a, *b)} == {"float64"}
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.ndim > 1]
    return max(float(np.abs(x - y).max()) for x, y in pairs)


def typed(row: Row, named: bool = False) -> str:
    """The command."""
    flags = " ".join([*SETTINGS, *row.flags.split(), *(critics(row) if named else [])])
    return f"topk run {flags} -- {row.typed()}"


def critics(row: Row) -> list[str]:
    """The flags that name the row's critics."""
    return [word for critic in row.critic.split() for word in ("--critic", critic)]


def compare(row: Row, folder: Path, named: bool = False) -> Outcome:
    """Run all arms of ``row``; ``wrong`` of the outcome says what is wrong.

    Args:
        named: with the row's critic named, where it has one.
    """
    outcome = Outcome(row)
    trial = Trial(row, folder)
    flags = critics(row) if named else []
    try:
        status, outcome.said = trial.topk(*flags)
        asks = row.asks and not flags
        if asks:
            outcome.wrong = _asked(outcome, trial, status)
        elif status:
            raise Failed(f"topk run ended with {status}: {outcome.said[-2000:]}")
        if outcome.wrong or (asks and not outcome.typed):
            return outcome
        found = trial.written()
        plain = trial.weights()
        wraps = json.dumps([wrap._asdict() for wrap in row.wraps])
        hand = trial.weights(str(HERE / "by_hand.py"), json.dumps(row.epoch), wraps)
    except (Failed, subprocess.TimeoutExpired) as error:
        outcome.wrong = str(error)
        return outcome
    outcome.error, outcome.changed = difference(found, hand), difference(plain, hand)
    _read(outcome, named)
    return outcome


def _asked(outcome: Outcome, trial: Trial, status: int) -> str:
    """What is wrong with a refusal; after it the critics are named, as it asks for."""
    row = outcome.row
    if not status:
        return "did not ask"
    if row.asks not in outcome.said:
        return f"asked for another reason: {outcome.said[-2000:]}"
    flags = critics(row)
    if not flags:
        return ""
    outcome.typed = " ".join(flags)
    status, outcome.said = trial.topk(*flags)
    return f"{outcome.typed} ended with {status}: {outcome.said[-2000:]}" if status else ""


def _read(outcome: Outcome, named: bool) -> None:
    """The header and the verdict; and is it right?"""
    row, header = outcome.row, HEADER.search(outcome.said)
    verdict = VERDICT.search(outcome.said)
    outcome.found = header[1] if header else "no header"
    said = verdict.groups() if verdict else ("no verdict", "", "")
    outcome.dropped, outcome.epochs, outcome.direction = said
    if not outcome.error <= SAME:
        outcome.wrong = "not top-k by hand"
    elif not outcome.changed > 1e-7:
        outcome.wrong = "top-k changed nothing"
    elif not (named or row.asks) and outcome.found != row.found:
        outcome.wrong = f"expected {row.found}"
    elif outcome.direction != ("low" if any(wrap.low for wrap in row.wraps) else "high"):
        outcome.wrong = "the other direction"
    elif "training 2" in outcome.said:
        outcome.wrong = "one training is taken for two"
    elif "ungated" in outcome.said:
        outcome.wrong = f"late: {outcome.said[-2000:]}"
