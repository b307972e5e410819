"""The rule itself: which rows of which rank are kept, and what they weigh."""

import json
from typing import NamedTuple

import picture
import pytest
import torch
from torch import Tensor

from topk_plugin.core.choice import GateState, gate_numbers
from topk_plugin.core.contest import Contest, Contestant, Gathered, outcome, places
from topk_plugin.core.direction import Direction
from topk_plugin.core.progress import EpochCount
from topk_plugin.core.schedule import k_of

NAN, INF = float("nan"), float("inf")


class Table(NamedTuple):
    """Ranks whose rows are known, so that nothing has to be sent."""

    ranks: list[list[float]]
    lean: Tensor
    rank: int
    room: int

    @property
    def size(self) -> int:
        return len(self.ranks)

    def gather(self, rows, lean, fraction):
        assert rows.tolist() == pytest.approx(self.ranks[self.rank], nan_ok=True)
        table = torch.zeros(self.size, self.room, dtype=torch.float64)
        for own, scores in zip(table, self.ranks, strict=True):
            own[: len(scores)] = torch.tensor(scores, dtype=torch.float64)
        sizes = torch.tensor([len(scores) for scores in self.ranks], dtype=torch.float64)
        return Gathered(table, sizes, self.lean, torch.tensor(fraction).double(), self.rank)


def by_sorting(ranks: list[list[float]], k: int, high: bool) -> list[list[bool]]:
    """Python's stable sort over all rows, by rank and position."""
    rows = [(r, i) for r, scores in enumerate(ranks) for i in range(len(scores))]

    def key(row):
        score = ranks[row[0]][row[1]]
        return (score != score, 0 if score != score else -score if high else score)

    kept = set(sorted(rows, key=key)[:k])
    return [[(r, i) in kept for i in range(len(scores))] for r, scores in enumerate(ranks)]


RANKS = {
    "equal": [[0.1, 3.0, -2.0], [5.0, 0.2, 0.3]],
    "unequal": [[0.1, 3.0], [5.0, 0.2, 0.3, -7.0, 1.0], [4.0]],
    "ties over ranks": [[1.0, 0.0, 1.0], [1.0, 1.0], [0.0, 1.0, 1.0]],
    "NaN": [[NAN, 1.0, NAN], [NAN, 2.0], [NAN, NAN, -1.0]],
    "infinite": [[INF, -INF, 0.0], [INF, NAN], [-INF]],
    "one rank has none": [[1.0, 2.0, 3.0], [], [0.5]],
    "one rank keeps none": [[-5.0, -6.0, -7.0], [1.0, 2.0, 3.0]],
    "signed zeros": [[0.0, -0.0], [-0.0, 0.0]],
}


@pytest.mark.parametrize("high", [True, False], ids=["high", "low"])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", RANKS)
def test_the_rows_that_are_kept(name, fraction, high):
    ranks = RANKS[name]
    total = sum(map(len, ranks))
    k = k_of(fraction, total)
    expected = by_sorting(ranks, k, high)
    # the first rank's vote is outvoted
    lean = torch.tensor([1.5, *[-2.0] * (len(ranks) - 1)]).double() * (1 if high else -1)
    for rank, scores in enumerate(ranks):
        peers = Table(ranks, lean, rank, room=max(map(len, ranks)) + 2)
        found = outcome(
            torch.tensor(scores, dtype=torch.float64), torch.tensor(0.0), fraction, peers
        )
        assert (found.places < found.k).tolist() == expected[rank]
        assert float(found.k) == k
        masks = torch.tensor(sum(expected, []))
        worst = torch.tensor(sum(ranks, []), dtype=torch.float64)[masks]
        worst = worst.min() if high else worst.max()  # NaN if one is kept
        assert torch.equal(found.worst.isnan(), worst.isnan())
        assert worst.isnan() or found.worst == worst


def test_places_are_a_permutation_of_what_there_is():
    absent = torch.tensor([False, True, False, True])
    scores = torch.tensor([NAN, 9.0, 1.0, NAN]).double()
    assert places(scores, -1.0, absent).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_weights(mean, steps):
    """b W A / K for means, W for sums: averaged over ranks, one process's gradient."""
    ranks = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, -1.0]]
    vote = Direction("high")
    progress = EpochCount(lambda epoch, steps: 0.5, 0)
    for rank, scores in enumerate(ranks):
        contest = Contest(steps, Table(ranks, torch.tensor([-1e9, -1e9]).double(), rank, 4))
        state = GateState(gate_numbers(0.5), vote.low)
        calls = [
            Contestant(contest, part, progress, state, mean)
            for part in torch.tensor(scores).chunk(steps)
        ]
        gradient = torch.ones(4 // steps)
        kept = torch.cat([call.choose([gradient]).keep(gradient) for call in calls])
        weight = (4 // steps) * 2 * steps / 4 if mean else 2
        assert kept.tolist() == [weight * keep for keep in by_sorting(ranks, 4, True)[rank]]
        tally = sum(call.choose([gradient]).tally for call in calls)
        mine = [s for s, keep in zip(scores, kept, strict=True) if keep]
        assert tally[1:4].tolist() == [steps, 4, len(mine)]
        assert tally[5] == sum(mine)
        assert tally[6] == sum(scores) - sum(mine)
        assert tally[7] == 3.0 * steps  # of all ranks' rows


def test_while_k_is_b_nothing_is_asked_for():
    class Nobody:
        size = 2

        def gather(self, rows, lean, fraction):
            raise AssertionError

    progress = EpochCount(lambda epoch, steps: 1.0, 0)
    state = GateState(gate_numbers(1.0), Direction("high").low)
    call = Contestant(Contest(1, Nobody()), torch.tensor([1.0, 2.0]), progress, state, True)
    gradient = torch.tensor([0.3, NAN])
    kept = call.choose([gradient]).keep(gradient)
    assert torch.equal(kept.view(torch.int32), gradient.view(torch.int32))


def test_the_picture_is_of_what_is_kept_now():
    image = pytest.importorskip("PIL.Image")
    with image.open(picture.FILE) as drawn:
        answer = json.loads(drawn.text["Description"])
    expected = {name: picture.kept(*whose) for name, whose in picture.SCOPES.items()}
    assert answer == expected
    assert len({str(weights) for weights in expected.values()}) == 4
    for name, (ranks, batches) in picture.SCOPES.items():
        for rank in (0, 1):
            for batch in (0, 1):
                rivals = [
                    score
                    for r in ((0, 1) if ranks else (rank,))
                    for b in ((0, 1) if batches else (batch,))
                    for score in picture.SCORES[r][b]
                ]
                best = sorted(rivals, reverse=True)[: len(rivals) // 2]
                weight = 4 * (1 + ranks) * (1 + batches) / len(best)
                own = picture.SCORES[rank][batch]
                assert expected[name][rank][batch] == [weight * (s in best) for s in own]
