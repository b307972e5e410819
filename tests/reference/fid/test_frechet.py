"""Statistics and the Frechet distance, against plain forms and SciPy's."""

import io
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from gaussians import RANDOM, by_gram, gaussian, statistics

from topk_plugin.errors import RunError
from topk_plugin.reference.fid import Statistics, frechet_distance


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_streamed_statistics_are_numpys_and_nothing_cancels(batch):
    rows = RANDOM.normal(1e4, 1e-3, (40, 5)) * [1, 2, 3, 4, 5]
    found = statistics(rows, batch)
    assert found.count == 40
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-6)


def test_float32_is_summed_in_float64():
    rows = RANDOM.normal(100, 1, (500, 3)).astype(np.float32)
    found = statistics(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-11)


def test_statistics_of_ranks_merge():
    rows = RANDOM.normal(50, 1, (60, 4))
    whole, merged, spoiled = statistics(rows), Statistics(4), statistics(np.full((3, 4), math.nan))
    for part in (rows[:1], rows[1:31], rows[31:31], rows[31:]):
        merged.merge(statistics(part))
    merged.merge(spoiled)
    assert (merged.count, merged.nonfinite) == (60, 3)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-11, atol=1e-13)


def test_statistics_are_saved_and_loaded():
    whole = statistics(RANDOM.normal(size=(30, 4)))
    whole.update(torch.full((2, 4), math.nan))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again = Statistics.from_state(torch.load(file, weights_only=True))
    assert (again.count, again.nonfinite) == (30, 2)
    assert torch.equal(again.covariance, whole.covariance)
    assert torch.equal(again.mean, whole.mean)


def test_what_is_not_finite_is_left_out_and_counted():
    rows = RANDOM.normal(size=(20, 3))
    spoiled = rows.copy()
    spoiled[3, 1], spoiled[8, 0], spoiled[9] = math.nan, math.inf, -math.inf
    found, good = statistics(spoiled), statistics(np.delete(rows, [3, 8, 9], axis=0))
    assert (found.count, found.nonfinite) == (17, 3)
    torch.testing.assert_close(found.covariance, good.covariance)
    with pytest.raises(RunError, match="found 0 and 3 samples whose features are NaN"):
        frechet_distance(good, found)


def test_one_sample_has_no_covariance():
    one, more = statistics(np.ones((1, 3))), statistics(RANDOM.normal(size=(5, 3)))
    for pair in ((one, more), (more, one)):
        with pytest.raises(RunError, match="found 1 samples .* expected at least 2"):
            frechet_distance(*pair)
    with pytest.raises(RunError, match="features of 3 and of 4 dimensions"):
        frechet_distance(more, statistics(np.ones((5, 4))))


# --- the distance -------------------------------------------------------------------------------


def test_distances_of_gaussians_that_have_a_closed_form():
    one, other = gaussian([1.0], np.array([[4.0]])), gaussian([3.0], np.array([[9.0]]))
    assert frechet_distance(one, other) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2, rel=1e-14)

    turn = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0]  # covariances that commute
    a, b = RANDOM.uniform(0, 3, (2, 6))
    a[0] = b[1] = 0
    means = RANDOM.normal(size=(2, 6))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    pair = gaussian(means[0], turn * a @ turn.T), gaussian(means[1], turn * b @ turn.T)
    assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-7)

    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    common = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))  # that do not
    expected = np.trace(a) + np.trace(b) - 2 * common
    found = frechet_distance(gaussian(np.zeros(2), a), gaussian(np.zeros(2), b))
    assert found == pytest.approx(expected, rel=1e-13)


SHAPES = {
    "more samples than dimensions": (200, 150, 20, 20),
    "fewer": (16, 12, 300, 300),
    "singular": (200, 150, 20, 8),
    "few of one": (150, 5, 20, 20),
}


def samples(shape: str) -> tuple[np.ndarray, np.ndarray]:
    n, m, dimension, rank = SHAPES[shape]
    random = np.random.default_rng(1)
    mix = random.normal(size=(rank, dimension))
    return random.normal(size=(n, rank)) @ mix, 1.1 * random.normal(size=(m, rank)) @ mix + 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_is_exact_where_covariances_are_singular(shape):
    a, b = samples(shape)
    found = frechet_distance(statistics(a), statistics(b))
    assert found == pytest.approx(by_gram(a, b), rel=1e-11)
    assert found == pytest.approx(frechet_distance(statistics(b), statistics(a)), rel=1e-13)
    scale = np.cov(a, rowvar=False).trace()
    assert 0 <= frechet_distance(statistics(a), statistics(a, 3)) < 1e-11 * scale


@pytest.mark.parametrize("shape", SHAPES)
def test_pytorch_fid_has_the_same_distance(theirs, shape):
    a, b = samples(shape)
    moments = [x for rows in (a, b) for x in (rows.mean(0), np.cov(rows, rowvar=False))]
    expected = theirs.calculate_frechet_distance(*moments)
    # where covariances are singular, its square root of their product has half the digits
    tolerance = 1e-11 if shape == "more samples than dimensions" else 1e-6
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=tolerance)


def test_the_distance_needs_nothing_of_scipy(monkeypatch):
    pair = [statistics(rows) for rows in samples("fewer")]
    expected = frechet_distance(*pair)

    def refuses(a, **options):
        raise TypeError(f"sqrtm() got an unexpected keyword argument {[*options]}")

    monkeypatch.setattr(scipy.linalg, "sqrtm", refuses)
    assert frechet_distance(*pair) == expected
