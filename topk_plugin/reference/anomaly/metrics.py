"""How well scores find anomalies: areas under the precision-recall curve, and its points."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

CURVE_POINTS = 100


def average_precision(anomalous: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a sum of steps; anomalies are the positives.

    Args:
        anomalous: (N,) bool.
        scores: (N,), higher is more anomalous.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    return float(average_precision_score(anomalous, scores))


def trapezoid_area(anomalous: np.ndarray, scores: np.ndarray) -> float:
    """The same area by trapezoids, as both repositories have it; few points make it differ.

    Arguments and errors are those of :func:`average_precision`.
    """
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    return float(auc(recall, precision))


def curve_points(anomalous: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """At most ``CURVE_POINTS`` of (recall, precision), recall from 0 to 1."""
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    precision, recall = precision[::-1], recall[::-1]
    chosen = np.unique(np.searchsorted(recall, np.linspace(0, 1, CURVE_POINTS)))
    return np.stack([recall, precision], axis=1)[chosen].round(4).tolist()
