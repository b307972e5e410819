"""What the trainers of all experiments share."""

from __future__ import annotations

import torch
from torch import Tensor

from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.records import Member


def update(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """A step of these optimizers' networks; others in the loss get no gradient."""
    own = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
        parameter.grad = gradient.contiguous()  # fused optimizers read it in memory order
    for optimizer in optimizers:
        optimizer.step()


def stream_of(member: Member, name: str, *key: int) -> torch.Generator:
    """A random stream of a member, whatever its arm.

    On the CPU, so that a GPU sees the same data order and initial weights.
    """
    return stream(name, member.cell, member.seed, *key, device=torch.device("cpu"))
