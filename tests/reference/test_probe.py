"""Figures 2-4's probe against literal updates, and its bins against a loop and by hand."""

import io
import json
import math
from dataclasses import asdict, astuple, replace

import pytest
import torch
from plain_mixture import CPU, network
from torch import nn

from topk_plugin.errors import ConfigError
from topk_plugin.reference import mixture
from topk_plugin.reference.mixture import grid_modes, nearest_mode
from topk_plugin.reference.mixture.draws import latents
from topk_plugin.reference.probe import Settings, Training, movement_by_bin
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs import Member

SMALL = Settings(
    iterations=30, batch=32, hidden=16, learning_rate=1e-3, samples=100, measure_every=20,
    probes=501, top=0.6, bottom=0.3, step_rate=0.1,
)  # fmt: skip
MEMBERS = [Member(25, "gan", 0), Member(25, "gan", 1), Member(64, "gan", 0)]
LINES = {  # the paper's line for each update, on scores (B,)
    "top-k": lambda scores: scores.topk(int(0.6 * 501)).values,
    "bottom-k": lambda scores: -(-scores).topk(int(0.3 * 501)).values,
    "all": lambda scores: scores,
}


def trained(settings: Settings = SMALL) -> Training:
    training = Training(settings, MEMBERS, CPU)
    training.advance(10**6)
    return training


@pytest.fixture(scope="module")
def training() -> Training:
    return trained()


def of_kind(rows, kind, member, update) -> list[dict]:
    found = [row for row in rows if row["kind"] == kind and row["update"] == update]
    return [row for row in found if Member(row["cell"], row["arm"], row["seed"]) == member]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top", 0), ("top", 1.5), ("bottom", -0.1), ("bottom", math.nan), ("probes", 1),
        ("probes", 10.5), ("step", "rmsprop"), ("step_rate", 0), ("step_rate", math.inf),
        ("iterations", 0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: found .* expected "):
        Settings(**{name: value})


def test_the_training_is_half_as_long_as_that_of_table_1():
    mine, its = asdict(Settings()), asdict(mixture.Settings())
    assert 2 * mine["iterations"] == its["iterations"]
    assert {name for name in its if mine[name] != its[name]} == {"iterations", "measure_every"}


# --- bins ---------------------------------------------------------------------------------------


def movements_by_hand(before, after, centers, std, bins) -> list[tuple]:
    """(bin, count, cosine, change) of each bin, sample by sample."""
    found: list[tuple[list, list]] = [([], []) for _ in range(bins)]
    for old, new in zip(before.tolist(), after.tolist(), strict=True):
        distances = [math.dist(old, center) for center in centers.tolist()]
        mode = centers.tolist()[distances.index(min(distances))]
        cosines, changes = found[min(int(min(distances) / std), bins - 1)]
        changes.append((math.dist(new, mode) - min(distances)) / std)
        step, way = ([b - a for a, b in zip(old, to, strict=True)] for to in (new, mode))
        if any(step) and any(way):
            product = sum(a * b for a, b in zip(step, way, strict=True))
            cosines.append(product / math.hypot(*step) / math.hypot(*way))
    rows = []
    for index, parts in enumerate(found):
        cosine, change = (sum(part) / len(part) if part else None for part in parts)
        rows.append((index, len(parts[1]), cosine, change))
    return rows


def alike(found, expected, close: float) -> bool:
    """Whether these numbers, or Nones, are the same."""
    pairs = zip(found, expected, strict=True)
    return all(a is b is None or a == pytest.approx(b, rel=close, abs=1e-9) for a, b in pairs)


@pytest.mark.parametrize("bins", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.05, 0.4, 3.0])
def test_movements_against_a_loop(bins, spread):
    random = torch.Generator().manual_seed(bins)
    before, move = torch.randn(2, 150, 2, generator=random, dtype=torch.float64) * spread
    move[::7] = 0
    centers = grid_modes(9, 1.0).double()
    before[5] = centers[2]  # on a mode, so that there is no way to it
    before[:5] = centers[:5] + 1e-3 * move[:5]
    found = movement_by_bin(before, before + move, centers, 0.1, bins)
    expected = movements_by_hand(before, before + move, centers, 0.1, bins)
    assert len(found) == bins
    assert sum(movement.count for movement in found) == 150
    for mine, its in zip(found, expected, strict=True):
        assert alike(astuple(mine), its, 1e-9)


def test_movements_by_hand():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0]], dtype=torch.float64)
    moves = [
        ([0.5, 0.0], [0.25, 0.0]),  # straight to its mode
        ([0.0, 0.25], [0.0, 0.75]),  # straight away from it
        ([0.0, 0.0], [0.5, 0.0]),  # lay on it
        ([9.0, 0.0], [9.0, 1.0]),  # across; 1 std away is the second bin
        ([13.5, 0.0], [13.5, 0.0]),  # stays
        ([4.0, 0.0], [10.0, 0.0]),  # to the other mode: away from what was nearest
    ]
    before, after = (
        torch.tensor(points, dtype=torch.float64) for points in zip(*moves, strict=True)
    )
    found = movement_by_bin(before, after, centers, 1.0)
    expected = [
        (0, 3, 0.0, (-0.25 + 0.5 + 0.5) / 3),
        (1, 1, 0.0, math.sqrt(2) - 1),
        (2, 0, None, None),
        (3, 1, None, 0.0),
        (4, 1, -1.0, 6.0),
    ]
    for mine, its in zip(found, expected, strict=True):
        assert alike(astuple(mine), its, 1e-12)
    [straight, *_] = movement_by_bin(before[:1], after[:1], centers, 1.0)
    assert (straight.cosine, straight.change) == (1.0, -0.25)


def test_movements_that_are_no_numbers():
    nowhere = torch.tensor([[math.nan, 0.0], [math.inf, 0.0]], dtype=torch.float64)
    there, centers = torch.zeros(2, 2, dtype=torch.float64) + 0.01, grid_modes(1, 1.0).double()
    first, *others = movement_by_bin(there, nowhere, centers, 1.0)
    assert astuple(first) == (0, 2, None, None)
    assert all(astuple(movement)[1:] == (0, None, None) for movement in others)
    *others, last = movement_by_bin(nowhere, there, centers, 1.0)
    assert astuple(last) == (4, 1, None, None)  # at infinity
    assert all(astuple(movement)[1:] == (0, None, None) for movement in others)


# --- the one update -----------------------------------------------------------------------------


def before_and_gradients(training: Training, member: Member, update: str):
    """The generator in float64, its probes, and the literal update's gradients in it."""
    index = training.members.index(member)
    noise = latents(SMALL, [1, SMALL.probes], stream("probe", *member, device=CPU))[0].double()
    generator, critic = (
        network([p.detach()[index].clone() for p in parameters], "leaky_relu").double()
        for parameters in (training.generator, training.critic)
    )
    before = generator(noise).detach()
    scores = critic(generator(noise)).squeeze(1)
    nn.functional.softplus(-LINES[update](scores)).mean().backward()
    return generator, noise, before


def check_rows(rows, member: Member, update: str, before, after) -> None:
    centers = grid_modes(member.cell, SMALL.spacing).double()
    assert nearest_mode(before, centers)[1].max() > SMALL.std
    expected = movements_by_hand(before, after, centers, SMALL.std, 5)
    found = of_kind(rows, "movement", member, update)
    assert len(found) == 5
    for row, its in zip(found, expected, strict=True):
        mine = [row[name] for name in ("bin", "count", "cosine", "change")]
        assert alike(mine, its, 1e-6)
    arrows = of_kind(rows, "arrows", member, update)
    assert len(arrows) == (member.seed == 0)
    for row in arrows:
        points = torch.tensor(row["points"], dtype=torch.float64)
        assert torch.allclose(points[:, :2], before[:400], rtol=1e-4)
        assert torch.allclose(points[:, 2:], (after - before)[:400], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("update", LINES)
def test_one_step_of_gradient_descent(training, update):
    rows = training.measure()
    for member in MEMBERS:
        generator, noise, before = before_and_gradients(training, member, update)
        torch.optim.SGD(generator.parameters(), SMALL.step_rate).step()
        after = generator(noise).detach()
        assert (after - before).abs().max() > 1e-4
        check_rows(rows, member, update, before, after)


@pytest.mark.parametrize("update", LINES)
def test_one_step_of_adam_goes_on_from_the_training(update):
    settings = replace(SMALL, step="adam", step_rate=SMALL.learning_rate)
    training = trained(settings)
    rows = training.measure()
    state = training.state_dict()  # which the optimizer's own step, below, changes
    for member in (MEMBERS[0], MEMBERS[2]):  # whose rows have arrows
        generator, noise, before = before_and_gradients(training, member, update)
        real = Training(settings, MEMBERS, CPU)
        content = io.BytesIO()
        torch.save(state, content)
        real.load_state_dict(torch.load(io.BytesIO(content.getvalue())))
        index = real.members.index(member)
        for stacked, own in zip(real.generator, generator.parameters(), strict=True):
            stacked.grad = torch.zeros_like(stacked)
            stacked.grad[index] = own.grad
        real.optimizers[1].step()  # the training's own, in float32
        generator = network([p.detach()[index] for p in real.generator], "leaky_relu").double()
        move = generator(noise).detach() - before
        assert move.abs().max() > 1e-4
        [row] = of_kind(rows, "arrows", member, update)
        found = torch.tensor(row["points"], dtype=torch.float64)[:, 2:]
        assert torch.allclose(found, move[:400], rtol=1e-3, atol=1e-6)


def test_what_the_updates_kept(training):
    rows = training.measure()
    for member in MEMBERS:
        for update, kept in (("top-k", 300), ("bottom-k", 150), ("all", 501)):
            [row] = of_kind(rows, "kept", member, update)
            assert (row["kept"], row["of"]) == (kept, 501)


# --- in a run -----------------------------------------------------------------------------------


def test_the_probe_comes_at_the_end_and_leaves_no_trace():
    training = Training(SMALL, MEMBERS, CPU)
    training.advance(20)
    assert {row["kind"] for row in training.measure()} == {"score"}
    training.advance(SMALL.iterations)
    weights = [p.detach().clone() for p in (*training.generator, *training.critic)]
    rows = training.measure()
    kinds = {"score", "samples", "movement", "kept", "arrows"}
    assert {row["kind"] for row in rows} == kinds
    assert all(row["iteration"] == 30 for row in rows)
    assert training.measure() == rows
    for mine, its in zip((*training.generator, *training.critic), weights, strict=True):
        assert torch.equal(mine, its)


def test_a_member_that_failed_gives_rows_without_numbers():
    training = trained()
    with torch.no_grad():
        training.generator[0][1] = math.nan
        training.generator[0][2] = math.nan
    rows = training.measure()
    json.dumps(rows, allow_nan=False)
    [arrows] = of_kind(rows, "arrows", MEMBERS[2], "all")
    assert arrows["points"] == []
    assert all(row["count"] == 0 for row in of_kind(rows, "movement", MEMBERS[1], "top-k"))
    assert any(row["count"] for row in of_kind(rows, "movement", MEMBERS[0], "top-k"))
