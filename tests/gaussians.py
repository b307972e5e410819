"""Frechet distances of plain numbers, for tests of what computes them."""

import math

import numpy as np
import torch

from topk_plugin.reference.fid import Statistics

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)


def statistics(rows: np.ndarray, batch: int = 7) -> Statistics:
    found = Statistics(rows.shape[1])
    for part in torch.from_numpy(rows).split(batch):
        found.update(part)
    return found


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 10) -> Statistics:
    scatter = torch.from_numpy(covariance * (count - 1))
    mean = torch.from_numpy(np.asarray(mean, float))
    return Statistics.from_state({"count": count, "nonfinite": 0, "mean": mean, "scatter": scatter})


def by_gram(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of samples without any covariance: exact for fewer samples than dimensions."""
    mean, x, y = a.mean(0) - b.mean(0), a - a.mean(0), b - b.mean(0)
    n, m = len(a) - 1, len(b) - 1
    common = np.linalg.svd(x @ y.T, compute_uv=False).sum() / math.sqrt(n * m)
    return mean @ mean + (x**2).sum() / n + (y**2).sum() / m - 2 * common
