"""One script, run plainly, with top-k by hand, and by `topk run`; what was said, and how far apart
the final weights are."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from others.pytorch_gan import REPOSITORY, Row

HERE = Path(__file__).parent
SETTINGS = ("--gamma", "0.8", "--nu", "0.5")
SAME = 1e-9
"""How far the weights may be from those of top-k by hand, in float64."""
HEADER = re.compile(r"^top-k ACTIVE: (?:found )?critics? (.+?), direction ", re.M)
VERDICT = re.compile(r"^top-k verdict: .* (\d+ of \d+) rows dropped.*; direction (\w+)", re.M)
ASKED = re.compile(r"--critic [\w:.]+(?:=[\w.,]+)?")
LIMIT = 600  # seconds a process


def checkout() -> Path | None:
    """The checkout, if it is in the folder that TOPK_UPSTREAMS names."""
    path = Path(os.environ.get("TOPK_UPSTREAMS", ""), REPOSITORY.replace("/", "+"))
    return path if os.environ.get("TOPK_UPSTREAMS") and path.is_dir() else None


class Failed(Exception):
    """A process ended otherwise than it should; its last words."""


@dataclass
class Outcome:
    """Of one row."""

    row: Row
    found: str = ""  # as the header said it
    direction: str = ""
    dropped: str = ""
    error: float = float("nan")  # of the weights, to those of top-k by hand
    changed: float = float("nan")  # by top-k by hand
    typed: str = ""  # the flag that the error told, and that was typed then
    wrong: str = ""  # what is, in words; empty: nothing
    said: str = ""  # by the last run

    def line(self) -> str:
        """For the table."""
        found = f"asks; typed {self.typed}" if self.typed else self.found or "asks"
        far = [f"{x:.0e}" if x == x else "-" for x in (self.error, self.changed)]
        numbers = f"{self.dropped or '-':>12}  {far[0]:>8}  {far[1]:>8}"
        return f"{self.row.name:24} {numbers}  {self.direction:4} {found}  {self.wrong}".rstrip()


HEADING = (
    f"{'script':24} {'dropped':>12}  {'to hand':>8}  {'changed':>8}  {'real':4} found\n{'-' * 100}"
)


class Trial:
    """Runs one row in a folder of its own."""

    def __init__(self, row: Row, folder: Path, source: Path) -> None:
        self.row = row
        kind = (row.script or f"{row.name}/{row.name}").partition("/")
        self.script = f"{kind[2]}.py"
        self.folder = folder / "implementations" / kind[0]
        shutil.copytree(source / "implementations" / kind[0], self.folder)
        row.data(folder / "data")

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status and what was said of ``python COMMAND SCRIPT ARGUMENTS``."""
        weights = self.folder / "weights.pt"
        weights.unlink(missing_ok=True)
        kept = {name: v for name, v in os.environ.items() if not name.startswith("TOPK_")}
        env = kept | {
            "PYTHONPATH": str(HERE / "startup"),
            "OTHERS_WEIGHTS": str(weights),
            "OTHERS_THIN": str(self.row.thin),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [sys.executable, *command, self.script, *self.row.arguments.split()],
            cwd=self.folder, env=env, timeout=LIMIT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        return done.returncode, done.stderr

    def weights(self, *command: str) -> list[torch.Tensor]:
        """All that is trained, after a run that has to succeed."""
        status, said = self.run(*command)
        if status:
            raise Failed(f"{command[:1]} ended with {status}: {said[-2000:]}")
        return self.written()

    def written(self) -> list[torch.Tensor]:
        return torch.load(self.folder / "weights.pt", weights_only=True)

    def topk(self, *flags: str) -> tuple[int, str]:
        """Of `topk run FLAGS -- SCRIPT ARGUMENTS`."""
        own = (*SETTINGS, *self.row.flags.split(), *flags)
        return self.run("-m", "topk_plugin", "run", *own, "--")


def difference(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """The largest one of any weight.

    Not of biases: before an InstanceNorm their gradients are rounding, which Adam magnifies.
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.dim() > 1]
    return max((x - y).abs().max().item() for x, y in pairs)


def compare(row: Row, folder: Path, source: Path, named: bool = False) -> Outcome:
    """Run all arms of ``row``; ``wrong`` of the outcome says what is wrong.

    Args:
        named: with the row's critic named, where it has one.
    """
    outcome = Outcome(row)
    trial = Trial(row, folder, source)
    flags = ["--critic", row.critic] if named and row.critic else []
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
        hand = trial.weights(str(HERE / "by_hand.py"), wraps)
    except (Failed, subprocess.TimeoutExpired) as error:
        outcome.wrong = str(error)
        return outcome
    outcome.error, outcome.changed = difference(found, hand), difference(plain, hand)
    _read(outcome, named)
    return outcome


def _asked(outcome: Outcome, trial: Trial, status: int) -> str:
    """What is wrong with a refusal; a flag that it tells is typed."""
    row = outcome.row
    if not status:
        return "did not ask"
    if row.asks not in outcome.said:
        return f"asked for another reason: {outcome.said[-2000:]}"
    flag = ASKED.search(outcome.said.partition(row.asks)[2])
    if flag is None or not row.critic:
        return ""
    outcome.typed = flag[0]
    status, outcome.said = trial.topk(*shlex.split(flag[0]))
    return f"{flag[0]} ended with {status}: {outcome.said[-2000:]}" if status else ""


def _read(outcome: Outcome, named: bool) -> None:
    """The header and the verdict; and is it right?"""
    row, header = outcome.row, HEADER.search(outcome.said)
    verdict = VERDICT.search(outcome.said)
    outcome.found = header[1] if header else "no header"
    outcome.dropped, outcome.direction = verdict.groups() if verdict else ("no verdict", "")
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
