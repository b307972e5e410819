"""Areas under the precision-recall curve, by hand."""

import numpy as np
import pytest

from topk_plugin.reference.anomaly import average_precision, metrics, trapezoid_area


def areas_by_hand(anomalous: list[bool], scores: list[float]) -> tuple[float, float]:
    """Both areas from the curve's points, one for each score as a threshold."""
    curve = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        found = [a for a, s in zip(anomalous, scores, strict=True) if s >= threshold]
        curve.append((sum(found) / sum(anomalous), sum(found) / len(found)))
    pairs = list(zip(curve, curve[1:], strict=False))
    steps = sum((right - left) * high for (left, _), (right, high) in pairs)
    trapezoids = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairs)
    return steps, trapezoids


def test_areas_under_the_curve():
    random = np.random.default_rng(0)
    for ties in (1, 10, 1000):
        anomalous, scores = random.random(200) < 0.3, np.round(random.random(200) * ties) / ties
        steps, trapezoids = areas_by_hand(anomalous.tolist(), scores.tolist())
        assert average_precision(anomalous, scores) == pytest.approx(steps, abs=1e-12)
        assert trapezoid_area(anomalous, scores) == pytest.approx(trapezoids, abs=1e-12)
    for broken in (np.nan, np.inf):
        for area in (average_precision, trapezoid_area):
            with pytest.raises(ValueError, match="infinity|NaN"):
                area(np.array([True, False]), np.array([broken, 1.0]))


def test_curves_run_from_0_to_1_in_few_points():
    random = np.random.default_rng(0)
    anomalous, scores = random.random(3000) < 0.3, random.random(3000)
    scores[anomalous] += 0.3
    points = np.array(metrics.curve_points(anomalous, scores))
    assert len(points) <= metrics.CURVE_POINTS
    recall, precision = points.T
    assert (recall[0], recall[-1]) == (0, 1)
    assert (np.diff(recall) > 0).all()
    area = (np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum()
    assert area == pytest.approx(trapezoid_area(anomalous, scores), abs=0.01)
