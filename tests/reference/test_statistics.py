"""Statistics over seeds against their definitions."""

import doctest
import math
import random

import pytest
from report_folders import ABLATION, PAPER

from topk_plugin.reference import statistics
from topk_plugin.reference.report import arms
from topk_plugin.reference.runs import Member


def test_paired_difference_by_hand():
    found = statistics.paired_difference(
        {0: 81.0, 1: 79.0, 2: 80.0, 7: 0.0}, {2: 84.0, 1: 82.0, 0: 83.0, 8: 99.0}
    )
    assert found.n == 3  # seeds 7 and 8 have no partner
    assert found.mean == 3.0  # of 2, 3 and 4
    assert found.std == 1.0
    half = 4.302653 / math.sqrt(3)  # Student's t with 2 degrees of freedom, from a table
    assert found.interval == pytest.approx((3 - half, 3 + half), abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_statistics_are_those_of_scipy_and_of_the_definition(n):
    from scipy import stats

    draws = random.Random(n)
    baseline = [draws.gauss(80, 5) for _ in range(n)]
    topk = [value + draws.gauss(2, 1) for value in baseline]
    found = statistics.summary(topk)
    assert found.mean == pytest.approx(sum(topk) / n)
    squares = sum((value - sum(topk) / n) ** 2 for value in topk)
    assert found.std == pytest.approx(math.sqrt(squares / (n - 1)))

    paired = statistics.paired_difference(dict(enumerate(baseline)), dict(enumerate(topk)))
    assert paired.interval == pytest.approx(
        tuple(stats.ttest_rel(topk, baseline).confidence_interval(0.95))
    )


def test_too_few_seeds_have_no_spread_and_no_interval():
    assert statistics.summary([]) is None
    assert statistics.summary([80.0]) == (1, 80.0, None, None)
    assert statistics.paired_difference({0: 1.0}, {0: 3.0}) == (1, 2.0, None, None)
    assert statistics.paired_difference({0: 1.0}, {1: 3.0}) is None


def test_the_example_in_the_documentation():
    assert doctest.testmod(statistics) == (0, 2)


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_its_own():
    found = statistics.Summary(3, -1e-5, 1e-6, (-2e-5, 1e-5))
    assert statistics.with_interval(found, 3) == "+0.000 [+0.000, +0.000]"
    assert statistics.with_interval(found._replace(mean=-0.0006), 3).startswith("-0.001 [")


def test_compare_pairs_arms_by_their_names():
    values = {Member(4, "meg", 0): 0.4, Member(4, "top-k+meg", 0): 0.5, Member(9, "meg", 0): 0.3}
    values |= {Member(4, "bigan", 0): 0.2}
    rows = statistics.compare(values, [4, 9], ["bigan", "meg", "top-k+meg"], "trapezoid", PAPER)
    assert [(row.cell, row.baseline_arm, row.topk_arm) for row in rows] == [
        (4, "bigan", "top-k+bigan"),
        (4, "meg", "top-k+meg"),
        (9, "bigan", "top-k+bigan"),
        (9, "meg", "top-k+meg"),
    ]
    bigan, meg, _, other = rows
    assert (bigan.baseline.mean, bigan.topk, bigan.difference) == (0.2, None, None)
    assert meg.difference.mean == pytest.approx(0.1)
    assert meg.paper == (0.401, 0.478)
    assert (other.baseline.mean, other.topk, other.paper) == (0.3, None, (None, None))


def test_one_baseline_of_several_arms_is_not_paired_away():
    values = {Member(32, arm, 0): ends[0] for arm, ends in ABLATION.items()}
    rows = statistics.compare(values, [32], list(ABLATION), "fid", PAPER)
    assert {row.baseline_arm for row in rows} == {"sagan"}
    assert [row.topk_arm for row in rows] == list(ABLATION)[1:]
    assert [row.difference.mean for row in rows] == [-1.0, -2.0, -0.5, 9.0, 9.5]
    members = [Member(32, arm, 0) for arm in ("both", "dcgan", "nu=0.9", "sagan", "top-k+dcgan")]
    assert arms.in_pairs(members) == ["sagan", "both", "nu=0.9", "dcgan", "top-k+dcgan"]
