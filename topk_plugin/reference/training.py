"""What the trainers of all experiments share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from topk_plugin import TopK
from topk_plugin.errors import ResumeMismatch
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.records import Member, Row


def update(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """A step of these optimizers' networks; others in the loss get no gradient."""
    own = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
        parameter.grad = gradient.contiguous()  # fused optimizers read it in memory order
    for optimizer in optimizers:
        optimizer.step()


def one_by_one(
    settings: object, members: Sequence[Member], device: torch.device, workers: int
) -> list[list[Member]]:
    """Which members one job trains together: each is one of its own."""
    return [[member] for member in members]


def stream_of(member: Member, name: str, *key: int) -> torch.Generator:
    """A random stream of a member, whatever its arm.

    On the CPU, so that a GPU sees the same data order and initial weights.
    """
    return stream(name, member.cell, member.seed, *key, device=torch.device("cpu"))


def row_of(member: Member, iteration: int, kind: str) -> Row:
    """How each row of a ``metrics.jsonl`` begins."""
    return member._asdict() | {"iteration": iteration, "kind": kind}


class Counts:
    """What a top-k counts of one member, also before a resume."""

    def __init__(self, topk: TopK) -> None:
        self.topk = topk
        self.before = {"rows": 0, "dropped": 0, "nonfinite": 0}

    def now(self) -> dict[str, int]:
        """Rows that it saw, dropped, and found not finite."""
        report = self.topk.report()
        return {name: n + getattr(report, name) for name, n in self.before.items()}


def proof_of(topk: TopK, counts: Mapping[str, int], last_k: int) -> Row:
    """What a row of kind "topk" says: that it was at work."""
    report = topk.report()
    return {
        **counts,
        "steps": report.steps,
        "epochs": report.epochs,
        "direction": report.direction,
        "last_k": last_k,
    }


def check_checkpoint(*facts: tuple[str, Any, Any]) -> None:
    """Holds what a checkpoint is of against what there is now.

    Args:
        facts: a name, the checkpoint's value, and the present one.

    Raises:
        ResumeMismatch: they differ.
    """
    for name, its, mine in facts:
        if its != mine:
            raise ResumeMismatch(
                f"{name}: {its!r} in the checkpoint, {mine!r} now. Resume with the settings and "
                "the data of the checkpoint, or start anew without it."
            )
