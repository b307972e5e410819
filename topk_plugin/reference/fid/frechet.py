"""The Frechet distance of two sets of features, each seen as a Gaussian.

Computed in float64 and from symmetric matrices alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from topk_plugin.errors import RunError


class Statistics:
    """Count, mean and covariance of features that come in batches, in float64.

    Each batch is centred at its own mean and merged as Chan et al. (1979) do, so that nothing
    cancels where the mean is large. A row with a NaN or an infinity is left out and counted.

    Args:
        dimension: of a feature, D.
        device: where to sum.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.nonfinite = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Adds a batch, (B, D)."""
        finite = features.isfinite().all(dim=1)
        rows = features[finite].to(self.mean)
        self.nonfinite += len(features) - len(rows)
        if len(rows):
            mean = rows.mean(dim=0)
            self._add(len(rows), mean, rows - mean)

    @torch.no_grad()
    def merge(self, other: Statistics) -> None:
        """Adds what another one has seen, such as that of another rank."""
        self.nonfinite += other.nonfinite
        if other.count:
            self.scatter += other.scatter.to(self.scatter)
            mean = other.mean.to(self.mean)
            self._add(other.count, mean, mean.new_empty(0, len(mean)))

    def _add(self, count: int, mean: Tensor, centred: Tensor) -> None:
        """Adds that many rows, of which ``centred`` are not yet in the scatter."""
        total, apart = self.count + count, mean - self.mean
        rows = torch.cat([centred, math.sqrt(self.count * count / total) * apart[None]])
        self.scatter.addmm_(rows.T, rows)
        self.mean += apart * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by the count less one, as numpy.cov does.

        Raises:
            RunError: fewer than two samples.
        """
        if self.count < 2:
            raise RunError(
                f"found {self.count} samples with finite features ({self.nonfinite} without), "
                "expected at least 2, of which there is a covariance; take more"
            )
        return self.scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Any]:
        """All of it on the CPU, for ``torch.load(weights_only=True)`` and for other ranks."""
        return {
            "count": self.count, "nonfinite": self.nonfinite,
            "mean": self.mean.cpu(), "scatter": self.scatter.cpu(),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> Statistics:
        """What a :meth:`state_dict` says."""
        made = cls(0)
        made.count, made.nonfinite = state["count"], state["nonfinite"]
        made.mean, made.scatter = state["mean"].to(device), state["scatter"].to(device)
        return made


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """``|mean - mean|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2))`` for covariances A, B; at least 0.

    The last trace is the sum of the singular values of ``F' G``, where ``A = F F'`` and
    ``B = G G'``. No matrix of the form A B has to be formed, whose eigenvalues would lose half
    of the digits where covariances are singular, as they are of fewer samples than dimensions.

    Raises:
        RunError: fewer than two samples, other dimensions, or features that were not finite.
    """
    if len(a.mean) != len(b.mean):
        raise RunError(
            f"found features of {len(a.mean)} and of {len(b.mean)} dimensions, expected the same "
            "network's"
        )
    if a.nonfinite or b.nonfinite:
        raise RunError(
            f"found {a.nonfinite} and {b.nonfinite} samples whose features are NaN or infinite, "
            "expected none: there is no distance of the others alone"
        )
    one, other = a.covariance, b.covariance.to(a.mean)
    apart = a.mean - b.mean.to(a.mean)
    common = torch.linalg.svdvals(_factor(one).T @ _factor(other)).sum()
    distance = apart.square().sum() + one.trace() + other.trace() - 2 * common
    return max(distance.item(), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """F with ``F F' = covariance``, (D, rank)."""
    values, vectors = torch.linalg.eigh(covariance)
    # smaller ones are rounding of the largest one, and their roots would not be small
    known = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, known] * values[known].sqrt()
