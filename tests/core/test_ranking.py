"""Which rows are kept, of scores of any kind; what is refused, and what the message says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import BATCH, LATENT, WIDTH, best_rows, make_generator, make_topk
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.core.ranking import (
    ballot,
    kept_rows,
    per_sample,
    ranking_scores,
    rows_scored,
    score_heads,
)
from topk_plugin.errors import ScoreShapeError

NAN, INF = math.nan, math.inf


def kept(scores: list[float] | torch.Tensor, k: int, sign: float = 1.0) -> list[int]:
    return kept_rows(torch.as_tensor(scores), k, sign).nonzero().flatten().tolist()


# --- selection ----------------------------------------------------------------------------------

# few distinct values, so that ties are common
odd = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, 1.0, -2.5])
numbers = st.one_of(odd, st.floats(width=16))


@given(st.lists(numbers, min_size=1, max_size=40), st.data())
def test_equals_a_sort_in_python(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    largest = data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    rows = kept(torch.tensor(scores, dtype=dtype), k, 1.0 if largest else -1.0)
    assert rows == best_rows(scores, k, largest)
    assert len(rows) == k


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.data())
def test_exactly_k_rows_in_bfloat16(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    rounded = torch.tensor(scores).bfloat16()  # many ties
    assert kept(rounded, k) == best_rows(rounded.tolist(), k)


@pytest.mark.parametrize(
    ("scores", "k", "sign", "rows"),
    [
        ([3.0, 1.0, 2.0], 2, 1, [0, 2]),
        ([3.0, 1.0, 2.0], 2, -1, [1, 2]),
        ([1.0, 1.0, 1.0, 1.0], 2, 1, [0, 1]),  # ties by position, whichever end is kept
        ([1.0, 1.0, 1.0, 1.0], 2, -1, [0, 1]),
        ([NAN, 1.0, -INF], 2, 1, [1, 2]),  # -Inf is bad, NaN is worse
        ([NAN, 1.0, INF], 2, -1, [1, 2]),
        ([NAN, 1.0, NAN, NAN], 2, 1, [0, 1]),  # nothing better left: a NaN row is kept
        ([INF, INF, 5.0], 1, 1, [0]),
        ([0.0, -0.0], 1, 1, [0]),  # the two zeros tie
        ([-0.0, 0.0], 1, -1, [0]),
        ([7.0], 1, 1, [0]),
    ],
)
def test_by_hand(scores, k, sign, rows):
    assert kept(scores, k, sign) == rows


def test_k_and_sign_may_be_tensors():
    scores = torch.arange(6.0)
    for k in range(1, 7):
        for sign in (1.0, -1.0):
            found = kept_rows(
                scores, torch.tensor(float(k), dtype=torch.float64), torch.tensor(sign)
            )
            assert torch.equal(found, kept_rows(scores, k, sign))


def test_layout_does_not_matter():
    wide = torch.randn(6, 4)
    assert kept(wide[:, 1], 3) == best_rows(wide[:, 1].tolist(), 3)
    assert kept(wide.t()[0], 3) == best_rows(wide[:, 0].tolist(), 3)
    assert kept(torch.tensor(1.0).expand(5), 2) == [0, 1]
    assert kept(wide[::2, 3], 2) == best_rows(wide[::2, 3].tolist(), 2)


def test_more_than_a_sort_of_small_arrays():
    """Large arrays take another sorting routine; it has to be stable as well."""
    scores = torch.randint(4, (5000,)).float()
    assert kept(scores, 1777) == best_rows(scores.tolist(), 1777)


@pytest.mark.parametrize(
    ("gradient", "vote"),
    [
        ([-1.0, -2.0, 3.0], 1),
        ([1.0, 2.0, -30.0], -1),
        ([1.0, -1.0], 0),
        ([0.0, 0.0], 0),
        ([NAN, NAN, -1.0], 1),
        ([INF, -1.0, -INF], 1),
    ],
)
def test_a_loss_votes_by_the_majority_of_signs(gradient, vote):
    assert ballot(torch.tensor(gradient)).item() == vote


# --- one number a sample ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1), (5, 1, 1, 1)])
def test_one_score_a_sample(shape):
    scores = torch.randn(5)
    assert torch.equal(per_sample(scores.reshape(shape), 5), scores)


@pytest.mark.parametrize("shape", [(5, 1, 4, 3), (5, 1, 7)])
def test_patch_maps_are_averaged(shape):
    patches = torch.randn(shape, dtype=torch.float64)
    rows = [sum(row.flatten().tolist()) / row.numel() for row in patches]
    assert per_sample(patches, 5).tolist() == pytest.approx(rows, rel=1e-14)


def test_16_bit_patches_are_averaged_in_float32():
    """2048 + 1 is 2048 in float16: sums in float16 would tie these rows."""
    patches = torch.tensor([[2048.0, 1.0], [2048.0, 0.0]], dtype=torch.float16)
    means = per_sample(patches.reshape(2, 1, 1, 2), 2)
    assert means.dtype == torch.float32
    assert means.tolist() == [1024.5, 1024.0]


def test_a_batch_of_one():
    assert per_sample(torch.tensor(3.0), 1).tolist() == [3.0]
    assert per_sample(torch.tensor([[3.0]]), 1).tolist() == [3.0]
    assert per_sample(torch.ones(1, 1, 4, 4), 1).tolist() == [1.0]


def test_heads_are_averaged():
    fine, coarse = torch.randn(3, 1, 2, 2), torch.randn(3, 1)
    expected = [(f.mean() + c.mean()) / 2 for f, c in zip(fine, coarse, strict=True)]
    found = ranking_scores([fine, coarse], 3, named=True)
    assert torch.allclose(found, torch.stack(expected))


@pytest.mark.parametrize("plugins", [(), ("random-k",)])
@pytest.mark.parametrize("direction", ["auto", "high", "low"])
def test_the_ranking_is_a_copy(direction, plugins):
    scores = torch.randn(3, 1)
    before = scores.clone()
    topk = TopK(direction=direction, plugins=plugins)
    found = topk.line.ranked([scores], 3, False, topk.training, mean=True)
    scores.zero_()
    assert torch.equal(found.ranking, before.flatten())


# --- which output is the score ------------------------------------------------------------------

S = torch.randn(5, 1)
LONG, WIDE, OTHER = torch.arange(5), torch.randn(5, 7), torch.randn(3)


@pytest.mark.parametrize(
    "output",
    [
        S,
        (S, WIDE),
        [OTHER, LONG, S],  # not B rows, not floating
        {"classes": LONG, "out": S},
        {"features": WIDE, "score": S},
        {"features": WIDE, "logits": S},
        {"score": WIDE, "adv_output": S},
        (None, "text", {"deep": [S]}),
    ],
)
def test_the_first_floating_tensor_with_B_rows(output):
    (found,) = score_heads(output, 5)
    assert found is S


@pytest.mark.parametrize(
    ("output", "heads"),
    [
        ((WIDE, S), (1,)),
        ((WIDE, S), ("1",)),
        ((WIDE, S), (-1,)),
        ({"a": WIDE, "b": S}, ("b",)),
        ({"a": [WIDE, (OTHER, S)]}, ("a.1.1",)),
        (S, (0,)),
        (S, ("0",)),
    ],
)
def test_named_heads(output, heads):
    (found,) = score_heads(output, 5, heads)
    assert found is S


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "heads", "words"),
    [
        ({"a": S}, ("b",), ["'b'", "'a': float32(5, 1)"]),
        ({"a": S}, ("a.b",), ["'a.b'"]),
        ((S, WIDE), (2,), ["names 2", "[float32(5, 1), float32(5, 7)]"]),
        ((S, WIDE), ("x",), ["'x'"]),
        ((LONG, S), (0,), ["names 0", "int64(5,", "floating"]),
        ({"a": "text"}, ("a",), ["'a'", "str"]),
        (S, (1,), ["names 1", "float32(5, 1)"]),  # not the second row of the scores
        (S, ("0.1",), ["'0.1'", "float32(5, 1)"]),
    ],
)
def test_a_wrong_name_of_a_head(output, heads, words):
    with pytest.raises(ScoreShapeError) as caught:
        score_heads(output, 5, heads)
    for word in ["heads", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.tensor(0.3), ["()", "batch of 5", "averaged inside the critic"]),
        (torch.ones(1), ["(1,)", "batch of 5", "averaged inside the critic"]),
        (torch.ones(1, 1), ["(1, 1)", "batch of 5", "averaged inside the critic"]),
        (torch.ones(4), ["(4,)", "batch of 5"]),
        (torch.ones(10, 1), ["(10, 1)", "batch of 5"]),
        (torch.ones(5, 10), ["(5, 10)", "10 numbers a sample", "class logits", "heads="]),
        (torch.ones(5, 3, 8, 8), ["(5, 3, 8, 8)", "192 numbers a sample", "image", "heads="]),
        (torch.ones(5, 3, 8), ["(5, 3, 8)", "24 numbers a sample", "heads="]),
    ],
)
def test_shapes_that_hold_no_score_a_sample(output, words):
    with pytest.raises(ScoreShapeError) as caught:
        per_sample(output, 5)
    for word in [*words, "(B,), (B, 1)", "(B, 1, H, W)"]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("output", "rows"),
    [
        (torch.ones(4, 1), 4),
        (torch.ones(4), 4),
        (torch.ones(4, 1, 1, 1), 4),
        ((torch.ones(4, 1), torch.ones(4, 7)), 4),
        ({"score": torch.ones(6)}, 6),
        (torch.ones(12, 1), 12),
        (torch.ones(12, 4), 12),
        (torch.ones(1, 1), 12),  # an average
        (torch.ones(()), 12),
        (torch.ones(5, 1), 12),
        (torch.ones(24, 1), 12),
        (torch.ones(4, 2), 12),
        ((torch.ones(12, 1), torch.ones(4)), 12),  # numbers of layers, say
        ((torch.ones(4, 1), torch.ones(3)), 12),
        ((torch.ones(4, 1), torch.ones(())), 12),
        (torch.ones(4, dtype=torch.int64), 12),
        (None, 12),
    ],
)
def test_scores_of_packs_are_fewer_than_the_samples(output, rows):
    assert rows_scored(output, 12) == rows


@pytest.mark.parametrize("shape", [(5, 10), (5, 3, 8, 8)])
def test_but_a_named_head_is_averaged(shape):
    scores = torch.randn(shape)
    assert torch.allclose(per_sample(scores, 5, named=True), scores.flatten(1).mean(1))


@pytest.mark.parametrize(
    "output", [(LONG, OTHER), {"classes": LONG}, [], None, "text", (torch.tensor(1.0),), LONG]
)
def test_no_score_at_all(output):
    with pytest.raises(ScoreShapeError, match="no score in the critic's output") as caught:
        score_heads(output, 5)
    assert "batch of 5" in str(caught.value)
    assert "heads=" in str(caught.value)


class Returns(nn.Module):
    """A critic that returns ``f(scores (B, 1), input)``."""

    def __init__(self, f):
        super().__init__()
        self.linear, self.f = nn.Linear(WIDTH, 1).double(), f

    def forward(self, x):
        return self.f(self.linear(x), x)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda s, x: s.mean(), ["shape ()", "batch of 8", "averaged inside the critic"]),
        (lambda s, x: s.mean(0), ["(1,)", "averaged inside", "--critic module:Class.attribute"]),
        (lambda s, x: s.expand(-1, 10), ["(8, 10)", "10 numbers a sample"]),
        (lambda s, x: s.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2), ["(8, 3, 2, 2)"]),
        (lambda s, x: x + s, ["as large as its input (8, 6)", "image"]),
        (lambda s, x: (s > 0).long(), ["int64(8, 1)"]),
        (lambda s, x: {"classes": (s > 0).long()}, ["int64(8, 1)", "no score"]),
    ],
)
def test_attach_refuses(f, words):
    G, D = make_generator(), Returns(f)
    with attach(D, TopK()), pytest.raises(ScoreShapeError) as caught:
        D(G(torch.randn(BATCH, LATENT, dtype=torch.float64)))
    for word in words:
        assert word in str(caught.value)


def test_attach_refuses_a_wrong_head():
    G, D = make_generator(), Returns(lambda s, x: {"out": s})
    with attach(D, TopK(heads=("score",))), pytest.raises(ScoreShapeError, match="'score'"):
        D(G(torch.randn(BATCH, LATENT, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("output", "settings", "words"),
    [
        (torch.tensor(1.0, requires_grad=True), {}, ["()", "before the mean", "squeeze"]),
        (torch.ones(5, 10, requires_grad=True), {}, ["(5, 10)", "heads="]),
        (torch.ones(5, 3, 4, 4, requires_grad=True), {}, ["(5, 3, 4, 4)"]),
        (LONG, {}, ["int64(5,"]),
        ((LONG, "text"), {}, ["no score", "int64(5,"]),
        (torch.ones(5, 1, requires_grad=True), {"heads": (1,)}, ["names 1"]),
        ({"a": torch.ones(5, requires_grad=True)}, {"heads": ("b",)}, ["'b'"]),
    ],
)
def test_line_a_refuses(output, settings, words):
    with pytest.raises(ScoreShapeError) as caught:
        TopK(**settings)(output)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_partial_last_batch_keeps_its_own_k(batch):
    topk = make_topk(4)  # half
    scores = torch.arange(float(batch)).requires_grad_()
    (-topk(scores)).mean().backward()
    k = topk.k(batch)
    assert k == max(1, batch // 2)
    assert scores.grad.nonzero().flatten().tolist() == list(range(batch))[-k:]
