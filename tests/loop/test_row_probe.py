"""The replay of a shielded call is left out where rows were seen to be apart, nowhere else."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    LATENT,
    LOSSES,
    NORMS,
    TOLD,
    TOLERANCE,
    WIDTH,
    Critic,
    TwoOutputs,
    assert_same,
    backward,
    error,
    literal,
    make_generator,
    make_topk,
    noise,
    reals,
)
from operations import added
from torch import Tensor, nn

from topk_plugin import attach
from topk_plugin.compat import EDGES
from topk_plugin.core.shielded_gate import GatedCall
from topk_plugin.loop import row_probe

pytestmark = pytest.mark.usefixtures("seeded")
LOSS = LOSSES["non-saturating"]


class Deviation(nn.Module):
    """The minibatch's standard deviation as one more column, times one from ``begins`` calls on."""

    begins, calls = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        column = x.std(0, correction=0).mean().expand(len(x), 1)
        return torch.cat([x, (self.calls > self.begins) * column], 1)


class Branch(Deviation):
    """Nothing is computed of the batch before."""

    def forward(self, x: Tensor) -> Tensor:
        if self.calls < self.begins:
            self.calls += 1
            return torch.cat([x, torch.zeros(len(x), 1, dtype=x.dtype)], 1)
        return super().forward(x)


class OneWay(nn.Module):
    """The first row acts on all others, and no other does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * x[:1] * torch.ones(len(x), 1).double().index_fill(0, torch.tensor([0]), 0)


def of_layers(*middle: nn.Module, width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 16), *middle, nn.LeakyReLU(0.2), nn.Linear(width, 1)
    ).double()


APART = {name: lambda name=name: Critic(name) for name in ("plain", "spectral", "group", "layer")}
APART["BatchNorm in eval mode"] = lambda: Critic("batch").eval()
APART["dropout"] = lambda: of_layers(nn.Dropout(0.3))
COUPLED = {
    "batch": lambda: Critic("batch"),
    "deviation": lambda: of_layers(Deviation(), width=17),
    "one way": lambda: of_layers(OneWay()),
}


class Replays:
    """Counts them while it is entered."""

    def __enter__(self) -> mock.Mock:
        original = GatedCall._replay
        self._patch = mock.patch.object(GatedCall, "_replay", autospec=True, side_effect=original)
        return self._patch.__enter__()

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(*error)


def play(D: nn.Module, steps: int, topk=None, G: nn.Module | None = None) -> tuple[list[int], list]:
    """Replays in each generator step beside critic steps; and gradients of both networks."""
    G = make_generator() if G is None else G
    topk = make_topk(3, direction="high") if topk is None else topk
    counts, found = [], []
    opt_G = torch.optim.SGD(G.parameters(), 0.01)
    opt_D = torch.optim.SGD(D.parameters(), 0.01)
    with attach(D, topk):
        for _ in range(steps):
            opt_D.zero_grad()
            F.softplus(D(G(noise()).detach()) - D(reals())).mean().backward()
            opt_D.step()
            with Replays() as replays:
                z, drawn = noise(), torch.get_rng_state()
                (G1, D1), (G2, D2) = copy.deepcopy((G, D)), copy.deepcopy((G, D))
                mine = backward(LOSS.of(D(G(z))), G, D)
                counts.append(replays.call_count)
            after = torch.get_rng_state()
            torch.set_rng_state(drawn)
            expected, _ = backward(literal(LOSS, D1(G1(z)), 3), G1, D1)
            torch.set_rng_state(drawn)
            _, ungated = backward(LOSS.of(D2(G2(z))), G2, D2)
            torch.set_rng_state(after)
            assert error(mine[0], expected) <= TOLERANCE
            assert_same(mine[1], ungated)
            found.append(mine)
            opt_G.step()
    return counts, found


@pytest.mark.parametrize("name", APART)
def test_where_rows_are_apart_the_replay_is_left_out(name):
    counts, _ = play(APART[name](), 12)
    # two of the first steps are audited, and run it once more
    assert counts == [2, 2, 1] + [0] * 9


@pytest.mark.parametrize("name", COUPLED)
def test_where_rows_act_on_each_other_it_stays(name):
    counts, _ = play(COUPLED[name](), 12)
    assert counts == [2, 2] + [1] * 10


def test_it_is_looked_at_again_now_and_then(monkeypatch):
    monkeypatch.setattr(row_probe, "AGAIN", 4)
    counts, _ = play(Critic("group"), 12)
    assert counts == [2, 2, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_rows_that_begin_to_act_on_each_other_are_noticed(monkeypatch):
    """A layer whose weight is zero at first, so that the same operations run."""
    monkeypatch.setattr(row_probe, "AGAIN", 4)
    D = of_layers(Deviation(), width=17)
    D[1].begins = 3 * 4  # calls of four steps
    with pytest.raises(AssertionError):  # between two looks it is wrong
        play(copy.deepcopy(D), 12)
    D[1].begins = 3 * 6
    counts, _ = play(D, 12)
    assert counts == [2, 2, 1, 0, 0, 0] + [1] * 6


def test_a_branch_that_makes_rows_act_on_each_other_is_noticed_at_once():
    D = of_layers(Branch(), width=17)
    D[1].begins = 3 * 5  # calls of five steps
    assert play(D, 9)[0] == [2, 2, 1, 0, 0] + [1] * 4


def test_other_modes_and_other_layers_are_looked_at_anew():
    D, topk, G = Critic("batch").eval(), make_topk(3, direction="high"), make_generator()
    assert play(D, 5, topk, G)[0] == [2, 2, 1, 0, 0]
    optimizer = torch.optim.SGD(G.parameters(), 0.01)
    with attach(D, topk):

        def replays() -> int:
            with Replays() as counted:
                backward(LOSS.of(D(G(noise()))), G, D)
            optimizer.step()
            return counted.call_count

        assert [replays() for _ in range(5)] == [1, 1, 1, 0, 0]
        D.train()
        assert [replays() for _ in range(5)] == [1] * 5
        D.eval()
        assert replays() == 0
        D.body[1] = NORMS["group"]().double()
        assert [replays() for _ in range(5)] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("told", TOLD)
def test_a_step_has_the_same_bits_before_and_after(told, monkeypatch):
    """Or a resumed run, which looks anew, would not repeat the one that was never cut."""
    gradients = []
    for probed in (3, 1000):
        monkeypatch.setattr(row_probe, "PROBED", probed)
        torch.manual_seed(0)
        counts, found = play(Critic("spectral"), 8, make_topk(3, direction=LOSS.direction(told)))
        assert (counts[-1] == 0) == (probed == 3)
        gradients.append(found)
    for a, b in zip(*gradients, strict=True):
        assert_same(sum(a, []), sum(b, []))


def test_k_of_B_and_a_loss_without_gradient_show_nothing():
    G, D = make_generator(batch_norm=False), of_layers(Deviation(), width=17)
    topk = make_topk(BATCH - 1, direction="high")
    with attach(D, topk):
        for _ in range(5):
            backward(LOSS.of(D(G(noise(1)))), G, D)  # one row, and it is kept
            D(G(noise())).mul(0).sum().backward()
        with Replays() as replays:
            backward(LOSS.of(D(G(noise()))), G, D)
        assert replays.call_count == 1 + topk.training.audit.goes_on


def test_an_overflow_shows_nothing():
    """As GradScaler's first steps have it."""
    G, D = make_generator(), Critic("plain")
    with attach(D, make_topk(3, direction="high")) as attachment:
        for _ in range(3):
            (LOSS.of(D(G(noise()))) * float("inf")).backward()
        (known,) = attachment._rows._inputs.values()
        assert known[0].apart() is None


def test_other_outputs_in_the_loss_keep_their_gradient():
    """Masking the input would mask theirs, too."""
    G, D = make_generator(), TwoOutputs("plain", tuple)
    with attach(D, make_topk(3, direction="high")):
        for with_features in [False] * 6 + [True, False]:
            z = noise()
            G1, D1 = copy.deepcopy((G, D))
            scores, features, _ = D1(G1(z))
            total = literal(LOSS, scores, 3) + features.square().mean() * with_features
            expected, _ = backward(total, G1, D1)
            scores, features, _ = D(G(z))
            loss = LOSS.of(scores) + (features.square().mean() if with_features else 0)
            found, _ = backward(loss, G, D)
            assert error(found, expected) <= TOLERANCE


class Pair(nn.Module):
    """BiGAN's D(x, z); of ``z`` the rows act on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z = nn.BatchNorm1d(LATENT).double()
        self.net = of_layers()
        self.join = nn.Linear(WIDTH + LATENT, WIDTH).double()

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.net(self.join(torch.cat([x, self.of_z(z)], 1)))


def test_of_several_inputs_each_is_looked_at_for_itself(monkeypatch):
    gradients = []
    for probed in (3, 1000):
        monkeypatch.setattr(row_probe, "PROBED", probed)
        torch.manual_seed(0)
        G, D, E = make_generator(), Pair(), nn.Linear(LATENT, LATENT).double()
        found = []
        with attach(D, make_topk(3, direction="high")) as attachment:
            for _ in range(6):
                w = noise()
                G1, D1, E1 = copy.deepcopy((G, D, E))
                expected = backward(literal(LOSS, D1(G1(E1(w)), E1(w)), 3), G1, E1)
                mine = backward(LOSS.of(D(G(E(w)), E(w))), G, E)
                assert error(sum(mine, []), sum(expected, [])) <= TOLERANCE
                found += sum(mine, [])
            (known,) = attachment._rows._inputs.values()
            assert [one.coupled for one in known] == [False, True]
        gradients.append(found)
    assert_same(*gradients)


def test_operations_that_a_shield_adds():
    apart, what = added("shielded", warm=110)
    assert {"neg": 1, "sort": 1, "mul": 1, "index_fill_": 1}.items() <= what.items()
    places = 0 if EDGES else 4  # where a replay begins and ends has to be a tensor
    assert apart <= 4 + places
    assert added("shielded", warm=110, steps=200)[0] <= 4.8 + places
    assert added("shielded", "batch", warm=110, steps=64, spare=False)[0] <= 9 + places


class OfImaginary(nn.Module):
    """Scores numbers of which only the imaginary parts may act on other rows' scores."""

    def __init__(self, coupled: bool):
        super().__init__()
        self.coupled, self.layer = coupled, nn.Linear(2 * WIDTH, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_complex() else torch.complex(x, x)
        imaginary = x.imag - x.imag.mean(0) if self.coupled else x.imag
        return self.layer(torch.cat([x.real, imaginary], 1))


class Imaginary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(torch.ones_like(x), x)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("coupled", [False, True])
def test_imaginary_parts_are_looked_at(coupled):
    G = nn.Sequential(make_generator(), Imaginary())
    counts, _ = play(OfImaginary(coupled), 5, G=G)
    assert counts == ([2, 2, 1, 1, 1] if coupled else [2, 2, 1, 0, 0])
