"""What the verdict says of a training, word by word."""

import re

import pytest
import torch
from torch import nn
from torch.optim import SGD

from topk_plugin import TopK, attach
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.run.verdict import lines_of
from topk_plugin.streams import count


def verdict(steps: int, ends: int = 0, rows: int = 4, **settings) -> list[str]:
    """Of a training of so many steps, after which ``ends`` epochs ended."""
    topk = TopK(gamma=0.5, nu=0.25, **settings)
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = SGD(G.parameters(), 0.1)
    with attach(D, topk, generator=G):
        for _ in range(steps):
            (-D(G(torch.randn(rows, 2)))).mean().backward()
            optimizer.step()
        for _ in range(ends):
            topk.end_epoch()
    return [*lines_of(topk.training, EpochTracker(topk))]


def test_one_of_a_kind_has_no_s():
    first, _ = verdict(steps=1, ends=1)
    assert first.startswith("1 generator step gated, 0 of 4 rows dropped, 1 epoch ended, last k 4")
    assert re.search(r"direction high, by 1 of 1 vote(;|$)", first)
    with pytest.warns(UserWarning, match="could never fall below the batch of 1 row with nu"):
        first, _ = verdict(steps=1, rows=1)
    assert first.startswith("1 generator step gated, 0 of 1 row dropped, 0 epochs ended")


@pytest.mark.parametrize(
    ("number", "one", "said"),
    [(0, "row", "0 rows"), (1, "pass", "1 pass"), (2, "pass", "2 passes"), (21, "vote", "21 votes")]
    + [("1", "epoch", "1 epoch"), ("1.5", "epoch", "1.5 epochs")],
)
def test_a_number_of_things(number, one, said):
    assert count(number, one) == said


NOT_DROPPED = "no row was dropped: k is B until an epoch ends, and none ended before the last"


def test_why_no_row_was_dropped():
    _, said = verdict(steps=3, ends=1)
    assert said == f"{NOT_DROPPED} generator step. Train for more epochs, or pass --every N"
    _, said = verdict(steps=3, every=3)
    assert said.endswith("Train for more epochs, or pass an --every below 3")
    _, said = verdict(steps=3, every=4)
    assert said == "k never decayed: pass an --every below 4"
    assert len(verdict(steps=3, every=2)) == 1
    with pytest.warns(UserWarning, match="could never fall"):  # which says it all
        assert len(verdict(steps=3, ends=1, rows=1)) == 1


@pytest.mark.parametrize("other", [False, True], ids=["one critic", "two critics"])
def test_two_trainings_that_rank_one_critics_scores_from_both_ends_are_told(other):
    topk = TopK(gamma=0.5, nu=0.5)
    D, E = nn.Linear(2, 1), nn.Linear(2, 1)
    with attach(D, topk), attach(E, topk):
        for sign, critic in ((-1, D), (1, E if other else D)):
            G = nn.Linear(2, 2)
            optimizer = SGD(G.parameters(), 0.1)
            for _ in range(3):
                optimizer.zero_grad()
                (sign * critic(G(torch.randn(4, 2)))).mean().backward()
                optimizer.step()
    first, second = topk.trainings.all
    tracker = EpochTracker(topk)
    said = [line for line in lines_of(second, tracker) if "other end" in line]
    assert [*filter(lambda line: "other end" in line, lines_of(first, tracker))] == []
    assert len(said) == (not other)
    assert all("training 1" in line and "direction high" in line for line in said)
