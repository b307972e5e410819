"""One selection in two forms, by the device and by the host, and the same in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from losses import best_rows
from torch import Tensor

from topk_plugin.core.choice import (
    BALLOT,
    KEPT_SUM,
    THRESHOLD,
    Choice,
    GateState,
    Ranked,
    gate_numbers,
)
from topk_plugin.core.direction import Direction
from topk_plugin.core.progress import EpochCount
from topk_plugin.core.ranking import kept_rows
from topk_plugin.core.sorted_choice import Sorted, SortedChoice, tally_of

pytestmark = pytest.mark.usefixtures("seeded")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def ordinary(batch: int) -> Tensor:
    return torch.randn(batch, dtype=torch.float64)


def tied(batch: int) -> Tensor:
    return ordinary(batch).round()


def with_nan(batch: int) -> Tensor:
    return tied(batch).masked_fill(torch.rand(batch) < 0.4, math.nan)


def with_infinities(batch: int) -> Tensor:
    ends = torch.rand(batch)
    return tied(batch).masked_fill(ends < 0.2, math.inf).masked_fill(ends > 0.8, -math.inf)


SCORES = [ordinary, tied, with_nan, with_infinities]


class Reference:
    """What is kept of a batch, row by row in Python.

    Args:
        scores: (B,).
        k: rows to keep.
        high: whether high scores are the realistic ones.
        mean: kept rows weigh B/k, else 1.
    """

    def __init__(self, scores: Tensor, k: int, high: bool, mean: bool) -> None:
        self.scores = scores.tolist()
        self.kept = best_rows(self.scores, k, high)
        self.weight = len(scores) / k if mean else 1.0
        self.high = high

    def keep(self, gradient: Tensor) -> Tensor:
        """The product of 16 bits is formed in float32, and then rounded."""
        found = torch.zeros_like(gradient)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        for i in self.kept:
            found[i] = gradient[i].to(wide) * torch.tensor(self.weight, dtype=wide)
        return found

    def tally(self) -> list[float]:
        """All but the ballot."""
        kept = [self.scores[i] for i in self.kept]
        dropped = [s for i, s in enumerate(self.scores) if i not in self.kept]
        numbers = all(s == s for s in kept)
        worst = (min(kept) if self.high else max(kept)) if numbers else math.nan
        nonfinite = sum(not math.isfinite(s) for s in self.scores)
        return [1, len(self.scores), len(kept), nonfinite, sum(kept), sum(dropped), worst]


def progress_at(k: int, batch: int) -> EpochCount:
    return EpochCount(lambda epoch, steps: k / batch, 0)


def by_device(
    scores: Tensor, k: int, mean: bool, decided: float = 0.0, votes: float = 0.0
) -> Ranked:
    vote = Direction("auto" if not decided else "high" if decided > 0 else "low")
    vote.low -= votes
    state = GateState(gate_numbers(k / scores.shape[-1]), vote.low)
    return Ranked(scores, state, mean, kept_rows)


def by_host(
    scores: Tensor, k: int, mean: bool, setting: str = "auto", votes: float = 0.0
) -> Sorted:
    vote = Direction(setting)
    vote.low -= votes
    return Sorted(scores, progress_at(k, scores.shape[-1]), vote, mean)


def same(a: Tensor, b: Tensor) -> bool:
    """To the last bit; NaN is NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(7.7, 8.8, 9.9), b.nan_to_num(7.7, 8.8, 9.9)
    )  # fmt: skip


def assert_alike(
    choices: Sequence[Choice | SortedChoice], reference: Reference, gradient: Tensor
) -> None:
    want = torch.tensor(reference.tally(), dtype=torch.float64)
    for choice in choices:
        assert choice.kept.nonzero().flatten().tolist() == reference.kept
        assert choice.scores.isnan().tolist() == [s != s for s in reference.scores]
        assert choice.batch == len(reference.scores)
        assert same(choice.keep(gradient), reference.keep(gradient))
        tally = choice.tally if isinstance(choice, Choice) else tally_of([choice])
        # sums are formed in another order
        assert torch.allclose(tally[BALLOT + 1 :], want, rtol=1e-14, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize("make", SCORES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_forms_are_the_reference(dtype, make, high, mean):
    """Every k of several batches, the direction decided, voted for, and asked for by the loss."""
    sign = 1.0 if high else -1.0
    for batch in (1, 2, 7, 33):
        for k in sorted({1, 2, batch // 2, batch - 1, batch} & set(range(1, batch + 1))):
            scores = make(batch).to(dtype)
            gradient = torch.randn(batch, 1).abs().to(dtype) * -sign
            gradient[1::5] = math.nan
            setting = "high" if high else "low"
            choices = [
                ranked.choose([gradient])
                for ranked in (
                    by_device(scores, k, mean, decided=sign),
                    by_host(scores, k, mean, setting),
                    by_device(scores, k, mean, votes=3 * sign),
                    by_host(scores, k, mean, votes=3 * sign),
                    by_device(scores, k, mean),
                    by_host(scores, k, mean),
                )
            ]
            reference = Reference(scores, k, high, mean)
            assert_alike(choices, reference, gradient)
            assert_alike(choices, reference, gradient.reshape(batch, 1, 1).expand(-1, 2, 3))
            # what is voted for beats what this loss asks for
            against = [by_device(scores, k, mean, votes=sign), by_host(scores, k, mean, votes=sign)]
            assert_alike([one.choose([-gradient]) for one in against], reference, gradient)
            assert [choice.cast.tolist() for choice in choices[2:]] == [[sign]] * 4


@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize("read", [(0, 1, 2), (2,), (0, 2)])
def test_of_several_heads_those_that_are_read_rank(read, high):
    batch, k, sign = 9, 4, 1.0 if high else -1.0
    heads = torch.stack([ordinary(batch) for _ in range(3)])
    gradients = [
        -sign * torch.rand(batch, 1, dtype=torch.float64) if place in read else None
        for place in range(3)
    ]
    means = [sum(heads[place, i].item() for place in read) / len(read) for i in range(batch)]
    reference = Reference(torch.tensor(means, dtype=torch.float64), k, high, True)
    for ranked in (
        by_device(heads, k, True, decided=sign),
        by_host(heads, k, True, "high" if high else "low"),
        by_device(heads, k, True),
        by_host(heads, k, True),
    ):
        choice = ranked.choose(gradients)
        assert choice.kept.nonzero().flatten().tolist() == reference.kept
        gradient = next(g for g in gradients if g is not None)
        assert same(choice.keep(gradient), reference.keep(gradient))
        assert torch.allclose(ranked.order, torch.tensor(means, dtype=torch.float64), rtol=1e-15)
        assert torch.equal(ranked.ranking, heads)


def test_a_change_of_the_scores_after_the_forward_is_not_seen():
    scores = ordinary(5)
    before, ranked = scores.clone(), by_host(scores, 2, True, "high")
    scores.zero_()
    choice = ranked.choose([torch.ones(5, 1)])
    assert torch.equal(choice.scores, before)
    assert choice.kept.nonzero().flatten().tolist() == best_rows(before.tolist(), 2)


@pytest.mark.parametrize("fraction", [0.7**2, 0.29, 1 / 3, 1e-9, 1.0])
def test_k_is_the_same_number_on_both_sides(fraction):
    for batch in range(1, 200):
        state = GateState(gate_numbers(fraction), Direction("high").low)
        scores, gradient = ordinary(batch), torch.ones(batch, 1)
        device = Ranked(scores, state, True, kept_rows).choose([gradient])
        progress = EpochCount(lambda epoch, steps: fraction, 0)
        host = Sorted(scores, progress, Direction("high"), True).choose([gradient])
        assert int(device.kept.sum()) == host.k


def test_tallies_of_many_calls_are_their_sum():
    calls = [
        (ordinary(6), 3, "high"), (with_nan(6), 3, "high"), (ordinary(6), 6, "high"),
        (tied(4), 1, "low"), (ordinary(6).float(), 3, "high"), (ordinary(6), 3, "auto"),
        (ordinary(6), 3, "auto"),
    ]  # fmt: skip
    choices = [
        by_host(scores, k, True, setting).choose([torch.ones(len(scores), 1)])
        for scores, k, setting in calls
    ]
    total = tally_of(choices)
    expected = torch.stack([tally_of([choice]) for choice in choices]).sum(0)
    assert torch.allclose(total, expected, rtol=1e-14, equal_nan=True)
    assert total[BALLOT] == -2
    assert total[KEPT_SUM:THRESHOLD].isfinite().any() or total[KEPT_SUM].isnan()
