import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from topk_plugin.core.schedule import KSchedule, k_of

fractions = st.floats(0, 1, exclude_min=True)
batches = st.integers(1, 4096)
epochs = st.integers(0, 1000)


def annealed(gamma: float, nu: float, batch: int, epoch: int) -> float:
    """The paper's own wording (section 3.2): decay k itself, once an epoch, never below nu * B."""
    k = float(batch)
    for _ in range(epoch):
        k = max(gamma * k, nu * batch)
    return k


@given(fractions, fractions, batches, epochs)
def test_equals_the_iterated_float_of_the_paper(gamma, nu, batch, epoch):
    literal = annealed(gamma, nu, batch, epoch)
    # next to an integer the two roundings may differ; test_rounding_never_costs_a_row pins those
    assume(abs(literal - round(literal)) > 2e-9 or literal == batch)
    assert KSchedule(gamma, nu).k(batch, epoch) == max(1, math.floor(literal))


@given(fractions, fractions, batches, epochs)
def test_k_lies_in_range_and_never_grows(gamma, nu, batch, epoch):
    schedule = KSchedule(gamma, nu)
    assert 1 <= schedule.k(batch, epoch + 1) <= schedule.k(batch, epoch) <= batch
    assert schedule.fraction(epoch) >= nu
    assert schedule.k(batch, 0) == batch


@given(st.integers(1, 4096), st.data())
def test_rounding_never_costs_a_row(batch, data):
    k = data.draw(st.integers(1, batch))
    assert k_of(k / batch, batch) == k
    assert k_of(math.nextafter(k / batch, 0), batch) == k
    assert k_of((k - 1e-6) / batch, batch) == max(1, k - 1)  # that much is no rounding


@pytest.mark.parametrize(
    ("gamma", "nu", "batch", "epoch", "k"),
    [
        (0.99, 0.5, 64, 0, 64),
        (0.99, 0.5, 64, 1, 63),  # 63.36
        (0.99, 0.5, 64, 68, 32),  # 0.5049
        (0.99, 0.5, 64, 69, 32),  # 0.4998: held at nu
        (0.99, 0.75, 256, 10**6, 192),
        (0.7, 0.1, 100, 2, 49),  # 0.7**2 * 100 is just below 49 in float64
        (0.5, 0.01, 7, 100, 1),  # 0.07: at least one row
        (1.0, 0.5, 64, 1000, 64),
        (0.99, 0.5, 1, 500, 1),
    ],
)
def test_by_hand(gamma, nu, batch, epoch, k):
    assert KSchedule(gamma, nu).k(batch, epoch) == k


@given(fractions, fractions, st.integers(1, 500), st.integers(1, 500), epochs)
def test_restoring_falls_as_in_the_paper_and_then_goes_back_evenly(gamma, nu, begin, length, epoch):
    falls, schedule = KSchedule(gamma, nu), KSchedule(gamma, nu, (begin, begin + length))
    if epoch <= begin:
        assert schedule.fraction(epoch) == falls.fraction(epoch)
    elif epoch >= begin + length:
        assert schedule.fraction(epoch) == 1.0
    else:
        assert 0 < schedule.fraction(epoch) <= 1
        steps = [schedule.fraction(epoch + i) - schedule.fraction(epoch + i - 1) for i in (0, 1)]
        assert steps[0] == pytest.approx(steps[1], abs=1e-12)
        assert steps[0] == pytest.approx((1 - falls.fraction(begin)) / length, abs=1e-12)


def test_restoring_by_hand():
    schedule = KSchedule(0.5, 0.25, (2, 5))
    kept = [schedule.k(64, epoch) for epoch in range(8)]
    assert kept == [64, 32, 16, 32, 48, 64, 64, 64]
