"""The weight of the rows that are kept, and scores that are no numbers."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    TOLERANCE,
    Critic,
    backward,
    best_rows,
    clear,
    error,
    gradients,
    make_generator,
    make_topk,
    noise,
)

from topk_plugin import attach

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3, 7, 48])
def test_the_weight_is_applied_in_float32(dtype, batch):
    """B/k rounded to 16 bits before the product would be off by up to one more rounding."""
    k = max(1, batch // 3 + 1) if batch > 1 else 1
    scores = torch.randn(batch, 1).to(dtype).requires_grad_()
    incoming = torch.rand(batch, 1).to(dtype) + 0.5
    make_topk(k, batch, direction="high")(scores).backward(incoming)
    rows = best_rows(scores.flatten().tolist(), k)
    expected = torch.zeros_like(incoming)
    scale = torch.tensor(batch / k, dtype=torch.float32)
    for i in rows:
        expected[i] = (incoming[i].float() * scale).to(dtype)
    assert torch.equal(scores.grad, expected)
    assert scores.grad.dtype == dtype


@pytest.mark.parametrize("way", ["line", "score", "shielded"])
def test_nan_of_a_dropped_row_never_leaks(way):
    """NaN images in two rows: their scores and gradients are NaN, and both are dropped."""
    G, D, z = make_generator(batch_norm=False), Critic(), noise()
    bad = torch.zeros(BATCH, 1, dtype=torch.float64)
    bad[[1, 4]] = torch.nan

    def scores(G, D):
        return D(G(z) + bad)

    good = [0, 2, 3, 5, 6, 7]
    G1, D1 = copy.deepcopy((G, D))
    s = D1(G1(z)[good]).flatten()
    expected, _ = backward(F.softplus(-s.topk(4).values).mean(), G1, D1)
    topk = make_topk(4, direction="high", gate="auto" if way == "line" else way)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = scores(G, D)
        out = topk(out) if way == "line" else out
        # the sum over rows that a mean's gradient is, without the NaN of the value itself
        total = F.softplus(-out)
        clear(G, D)
        total.backward(torch.full_like(total, 1 / BATCH))
        found = gradients(G)
        optimizer.step()
    assert all(torch.isfinite(g).all() for g in found)
    assert error(found, expected) <= TOLERANCE
    assert topk.report().nonfinite == 2


def test_nan_rows_are_kept_when_there_is_nothing_better():
    scores = torch.tensor([torch.nan, 2.0, torch.nan, 1.0], requires_grad=True)
    topk = make_topk(3, 4, direction="high")
    topk(scores).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(scores.grad, torch.tensor([1.0, 2.0, 0.0, 4.0]) * 4 / 3)
    torch.optim.SGD([scores], 0.0).step()
    assert topk.report().nonfinite == 2


@pytest.mark.parametrize("direction", ["high", "low"])
def test_infinite_scores_rank_and_pass(direction):
    values = torch.tensor([torch.inf, 0.0, -torch.inf, 1.0, torch.nan])
    scores = values.clone().requires_grad_()
    out = make_topk(2, 5, direction=direction)(scores)
    assert torch.equal(out.nan_to_num(7.0), values.nan_to_num(7.0))
    out.backward(torch.ones(5))
    kept = {"high": [0, 3], "low": [1, 2]}[direction]
    assert scores.grad.nonzero().flatten().tolist() == kept
