"""Rows whose scores the generator's loss does not read do not compete with those that it reads."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LATENT, WIDTH, error, make_generator
from stepping import SGD
from torch import Tensor, nn

from topk_plugin import TopK, attach
from topk_plugin.core.parts import Parts, rows_read, saturates
from topk_plugin.errors import ConfigError

K = 3
MANY = 3 * BATCH


def turned(samples: Tensor) -> Tensor:
    """Each sample three times, as where the critic has another task beside."""
    return torch.cat([samples.roll(by, 1) for by in range(3)])


EVEN = torch.arange(MANY) % 2 == 0

READ = {  # what the critic is called with, and the scores of it that the loss reads
    "the first of three": (turned, lambda scores: scores[:BATCH]),
    "the second of three": (turned, lambda scores: scores[BATCH : 2 * BATCH]),
    "those of a mask": (turned, lambda scores: scores[EVEN]),
    "on both sides of others": (turned, lambda s: torch.cat([s[:BATCH], s[2 * BATCH :]])),
}


class Critic(nn.Module):
    def __init__(self, layer: str):
        super().__init__()
        between = {"plain": nn.Identity(), "BatchNorm": nn.BatchNorm1d(8)}[layer]
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), between, nn.LeakyReLU(0.2)).double()
        self.score, self.task = nn.Linear(8, 1).double(), nn.Linear(8, 3).double()

    def forward(self, x):
        features = self.body(x)
        return self.score(features), self.task(features)


def train(G, D, topk, case, hand=False, marked=False, epochs=range(3)):
    join, read = READ[case]
    opt_G, opt_D = SGD(G.parameters(), 0.05), SGD(D.parameters(), 0.05)
    tasks = torch.arange(3).repeat_interleave(BATCH)
    for epoch in epochs:
        torch.manual_seed(epoch)
        for _ in range(12):
            fake, real = torch.randn(2, BATCH, LATENT, dtype=torch.float64), torch.randn(1)
            opt_D.zero_grad()
            of_fakes, _ = D(join(G(fake[0]).detach()))
            of_reals, task = D(join(torch.randn(BATCH, WIDTH, dtype=torch.float64) + real))
            loss = F.softplus(of_fakes).mean() + F.softplus(-of_reals).mean()
            (loss + F.cross_entropy(task, tasks)).backward()
            opt_D.step()
            opt_G.zero_grad()
            with topk.generator_step() if marked else nullcontext():
                scores, task = D(join(G(fake[1])))
                scores = read(scores)
                if hand:
                    k = max(int(len(scores) * K / BATCH), int(0.5**epoch * len(scores)))
                    scores = scores[scores.flatten().topk(k).indices]
                (F.softplus(-scores).mean() + 0.2 * F.cross_entropy(task, tasks)).backward()
                opt_G.step()
        if not hand:
            topk.end_epoch()


def ended(case, layer, hand, topk, **how):
    torch.manual_seed(0)
    G, D = make_generator(), Critic(layer)
    with nullcontext() if hand else attach(D, topk, heads=[0]):
        train(G, D, topk, case, hand, **how)
    return [*G.state_dict().values(), *D.state_dict().values()]


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unknown"])
@pytest.mark.parametrize("layer", ["plain", "BatchNorm"])
@pytest.mark.parametrize("case", READ)
def test_a_training_is_that_by_hand(case, layer, marked):
    topk = TopK(gamma=0.5, nu=K / BATCH)
    by_hand = ended(case, layer, True, topk)
    assert error(ended(case, layer, False, topk, marked=marked), by_hand) < 1e-12
    _, read = READ[case]
    rows = len(read(torch.zeros(MANY)))
    report = topk.report()
    assert report.last_batch == rows
    assert report.last_k == int(rows * K / BATCH)
    assert report.dropped == 12 * (rows - rows // 2) + 12 * (rows - report.last_k)


def test_a_training_that_goes_on_has_no_first_steps_to_look_at():
    case = "the second of three"
    whole = ended(case, "plain", True, TopK())
    torch.manual_seed(0)
    G, D, topk = make_generator(), Critic("plain"), TopK(gamma=0.5, nu=K / BATCH)
    with attach(D, topk, heads=[0]):
        train(G, D, topk, case, epochs=range(1))
        saved = topk.state_dict()
    topk = TopK(gamma=0.5, nu=K / BATCH)
    topk.load_state_dict(saved)
    with attach(D, topk, heads=[0]):
        train(G, D, topk, case, epochs=range(1, 3))
    assert error([*G.state_dict().values(), *D.state_dict().values()], whole) < 1e-12


def test_where_other_batches_compete_it_is_told():
    torch.manual_seed(0)
    G, D, topk = make_generator(), Critic("plain"), TopK(gamma=0.5, nu=K / BATCH)
    with attach(D, topk, heads=[0]):
        train(G, D, topk, "the first of three", epochs=range(1))
        with pytest.raises(ConfigError, match="part of the critic.s"), topk.accumulate(steps=2):
            D(turned(G(torch.randn(BATCH, LATENT, dtype=torch.float64))))


def seen(parts: Parts, scores: list[float], gradients: list[float]) -> None:
    parts.looks([torch.tensor(scores)], len(scores))([torch.tensor(gradients)])


@pytest.mark.parametrize(
    ("scores", "gradients", "found"),
    [
        ([[1, 9, 2, 3], [3, 4, 1, 5]], [[0, 0, -1, -1], [0, 0, -1, -1]], True),
        ([[1, 9, 2, 3], [3, 4, 1, 5]], [[0, 0, -1, -1], [-1, 0, 0, -1]], False),  # others
        ([[1, 2, 9, 8], [1, 2, 9, 8]], [[-1, -1, 0, 0], [-1, -1, 0, 0]], False),  # saturated
        ([[1, 9, 2, 3]], [[0, 0, -1, -1]], False),  # once
        ([[1, 9, 2, 3]] * 2, [[-1, 0, -1, -1]] * 2, False),  # one row
        ([[1, 9, 2, 3]] * 2, [[-1, -1, -1, -1]] * 2, False),  # all are read
        ([[1, 9, 2, 3]] * 2, [[0, 0, 0, 0]] * 2, False),  # none is
    ],
)
def test_what_shows_that_rows_are_not_read(scores, gradients, found):
    parts = Parts()
    for s, g in zip(scores, gradients, strict=True):
        seen(parts, [float(n) for n in s], [float(n) for n in g])
    parts.decide(last=True)
    assert parts.found is found


def test_epochs_of_one_step_are_seen_together():
    parts = Parts()
    for found in (False, True):
        seen(parts, [1.0, 9.0, 2.0, 3.0], [0.0, 0.0, -1.0, -1.0])
        parts.decide(last=found)
        assert parts.found is found


def test_a_row_is_read_where_any_of_its_scores_is():
    first, second = torch.tensor([[1.0], [0], [0]]), torch.tensor([[[0.0, 0]], [[0, 2]], [[0, 0]]])
    assert rows_read([first, None, second], 3).tolist() == [True, True, False]


def test_a_loss_that_saturates_does_so_at_one_end():
    scores = torch.tensor([1.0, 2, 3, 4])
    assert saturates(scores, torch.tensor([-1.0, -1, 0, 0]))
    assert saturates(scores, torch.tensor([0.0, -1, -1, -1]))
    assert not saturates(scores, torch.tensor([-1.0, 0, -1, 0]))
