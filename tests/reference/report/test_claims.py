"""Whether a run agrees with what the paper says of signs."""

import statistics as plain

import pytest
from report_folders import probe

from topk_plugin.reference import statistics
from topk_plugin.reference.report import claims


def test_a_seed_without_a_sample_in_a_bin_does_not_count_there():
    rows = [row for row in probe() if row["kind"] == "movement"]
    for row in rows:
        if (row["update"], row["bin"], row["seed"]) == ("top-k", 3, 2):
            row |= {"count": 0, "cosine": None, "change": None}
    found = claims.movement(rows, "cosine")
    assert found["top-k", 3].n == 2
    assert found["top-k", 3].mean == pytest.approx(plain.mean([0.15, 0.2]))
    assert found["top-k", 4].n == 3


def said(values, update="bottom-k", quantity="cosine"):
    """The verdict on means of two seeds each, by bin."""
    rows = [
        {"update": update, "bin": number, "count": 9, quantity: mean}
        for number, means in enumerate(values)
        for mean in means
    ]
    [claim] = [c for c in claims.CLAIMS if (c.update, c.quantity) == (update, quantity)]
    return claims.verdict(claim, claims.movement(rows, quantity))


def test_the_verdict_follows_the_signs():
    below, above, around = (-0.31, -0.29), (0.29, 0.31), (-0.5, 0.1)
    agreed = said([below] * 5)
    assert "negative in the bins 0–1, 1–2, 2–3, 3–4, > 4 std, as the paper says" in agreed
    assert "0–1: -0.30 [-0.43, -0.17]" in agreed
    assert "2 seeds" in agreed
    assert "includes 0" not in agreed

    mixed = said([below, around, below, above, above])
    assert "negative only in the bins 0–1, 1–2, 2–3 std, in part unlike the paper" in mixed
    assert "the 95% interval includes 0 in the bin 1–2 std" in mixed

    assert "not negative in the bins 0–1, 1–2, 2–3, 3–4, > 4 std, unlike" in said([above] * 5)
    assert "not negative in the bin 0–1 std, unlike the paper" in said([above])
    assert "unknown" in said([])
    assert "1 seed, no interval" in said([(-0.3,)] * 5)
    assert "positive in the bins" in said([above] * 5, quantity="change")
    far = said([below] * 4 + [above], update="top-k")
    assert "top-k: the mean cosine is positive in the bin > 4 std, as the paper says" in far
    assert "negative in the bin > 4 std, as" in said([above] * 4 + [below], "top-k", "change")


def test_the_contrast_is_taken_seed_by_seed():
    rows = [
        {"cell": 25, "seed": seed, "update": update, "bin": 0, "count": count, "cosine": cosine}
        for seed, update, count, cosine in [
            (0, "top-k", 3, 0.5), (0, "bottom-k", 2, 0.1), (1, "top-k", 1, 0.1),
            (1, "bottom-k", 1, -0.1), (2, "top-k", 5, 0.9), (2, "bottom-k", 0, None),
        ]
    ]  # fmt: skip
    found = claims.contrast(rows, "cosine")
    assert [*found] == [0]
    assert found[0].n == 2
    assert found[0].mean == pytest.approx(0.3)


def test_a_sign_that_the_interval_leaves_open_decides_nothing():
    claim = claims.Claim("top-k", "cosine", 1, (4,))
    open_, known = (
        statistics.Summary(3, 0.1, 0.1, interval) for interval in ((-0.1, 0.3), (0.05, 0.15))
    )
    assert "which decides nothing" in claims.verdict(claim, {("top-k", 4): open_})
    assert "as the paper says (" in claims.verdict(claim, {("top-k", 4): known})
    both = claim._replace(bins=(3, 4))
    said = claims.verdict(both, {("top-k", 3): open_, ("top-k", 4): known})
    assert "as the paper says as far as it is decided" in said
