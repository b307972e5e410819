"""A generator's loss, said once more to the kept scores alone: the paper's line itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topk_plugin.check.formula import BOUNDS, norm2, relative


@dataclass
class LossFinding:
    """What ``loss(scores[kept])`` gives, beside the gradient that a gate keeps."""

    error: float | None = None  # relative difference of the gradients
    bound: float = 0.0
    other: str | None = None  # the reduction with which they would agree
    operation: str | None = None  # that couples the rows, if it is known
    reason: str | None = None  # why it could not be compared


def bound_of(gradients: Sequence[Tensor]) -> float:
    """What rounding makes of these gradients at most."""
    return max(BOUNDS.get(g.dtype, BOUNDS[torch.bfloat16]) for g in gradients)


def differences(
    found: Sequence[Tensor], gradients: Sequence[Tensor], kept: Tensor
) -> dict[str, float]:
    """Relative differences, under each reduction.

    Args:
        found: of the kept scores alone, (k, ...) by each head.
        gradients: of all scores, (B, ...) by each head.
        kept: (B,) bool.
    """
    weights = {"mean": len(kept) / max(1, int(kept.sum())), "sum": 1.0}
    whole = math.sqrt(sum(norm2(g[kept]) for g in gradients))
    pairs = list(zip(found, gradients, strict=True))
    return {
        name: relative(
            math.sqrt(sum(norm2(f.double() - g[kept].double() * weight) for f, g in pairs)),
            weight * whole,
        )
        for name, weight in weights.items()
    }


def loss_finding(
    found: Sequence[Tensor],
    gradients: Sequence[Tensor],
    kept: Tensor,
    reduction: str,
    divides: bool = False,
    operation: str | None = None,
) -> LossFinding:
    """The finding of what :func:`differences` compares.

    Args:
        divides: the loss divides a sum by a number of rows that it does not take from the scores,
            so that what looks like a sum may well be a mean.
    """
    errors, bound = differences(found, gradients, kept), bound_of(gradients)
    (other,) = errors.keys() - {reduction}
    if errors[other] <= bound and divides and reduction == "mean":
        return LossFinding(errors[other], bound, operation=operation)
    return LossFinding(
        errors[reduction], bound, other if errors[other] <= bound else None, operation
    )
