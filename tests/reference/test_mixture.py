"""Table 1's stacked training against plain loops, against its parts, and against itself."""

import dataclasses
import io
import json
import math

import pytest
import torch
from plain_mixture import ACTIVATIONS, CPU, Plain, network
from torch import nn
from torch.nn import functional

from topk_plugin.errors import ConfigError, ResumeMismatch
from topk_plugin.reference import study
from topk_plugin.reference.mixture.draws import CHUNK, draw, initial_weights, latents
from topk_plugin.reference.mixture.modes import grid_modes, mode_coverage, nearest_mode
from topk_plugin.reference.mixture.settings import Settings
from topk_plugin.reference.mixture.training import Training, WithinMembers, stacks
from topk_plugin.reference.networks import stacked
from topk_plugin.reference.networks.stacked import mlp
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs import Member

SMALL = Settings(
    iterations=60, batch=32, hidden=16, decay_every=7, gamma=0.83, nu=0.3, learning_rate=1e-3,
    samples=500, measure_every=20,
)  # fmt: skip
MEMBERS = [
    Member(modes, arm, seed) for modes in (25, 64) for arm in ("gan", "top-k") for seed in (0, 1)
]


def trained(settings=SMALL, members=MEMBERS, until=10**6, dtype=torch.float32) -> Training:
    training = Training(settings, members, CPU, dtype)
    training.advance(until)
    return training


def weights(training: Training, member: Member) -> list[torch.Tensor]:
    """Copies of one member's."""
    index = training.members.index(member)
    return [p.detach()[index].clone() for p in (*training.generator, *training.critic)]


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def rows_of(training: Training, kind: str) -> dict[Member, dict]:
    rows = [row for row in training.measure() if row["kind"] == kind]
    return {Member(row["cell"], row["arm"], row["seed"]): row for row in rows}


# --- settings -----------------------------------------------------------------------------------

WRONG = {
    "iterations": (0, 1.5), "batch": (0, "256"), "hidden": (-1, True), "learning_rate": (0, "1"),
    "std": (-0.1, math.nan), "gamma": (0, 1.1, True), "nu": (-1, math.nan), "decay_every": (0, ""),
    "samples": (0, 1e4), "layers": (0, 2.0), "activation": ("elu", 3), "latent": (0, 2.5),
    "prior": ("uni", None), "spacing": (0.0, math.inf), "beta1": (1, -0.1), "beta2": (1.0, "0.9"),
    "critic_steps": (0, 1.0), "measure_every": (0, "all"),
}  # fmt: skip


def test_every_setting_has_a_range():
    assert set(WRONG) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: found .* expected "):
        Settings(**{name: value})


# --- modes and metrics --------------------------------------------------------------------------


def test_modes_lie_on_a_square_grid_around_the_origin():
    expected = [[x, y] for x in (-1.5, 0.0, 1.5) for y in (-1.5, 0.0, 1.5)]
    assert grid_modes(9, 1.5).tolist() == expected
    assert grid_modes(4, 1.0).tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    assert grid_modes(1, 2.0).tolist() == [[0.0, 0.0]]
    for modes in (0, -4, 24, 26):
        with pytest.raises(ConfigError, match=f"found {modes} modes, expected a square number"):
            grid_modes(modes, 1.0)


def coverage_by_hand(samples, centers, std) -> tuple[float, float, int]:
    good, broken, found = 0, 0, set()
    for x, y in samples.tolist():
        if not (math.isfinite(x) and math.isfinite(y)):
            broken += 1
            continue
        distances = [math.dist((x, y), center) for center in centers.tolist()]
        if min(distances) <= 4 * std:
            good += 1
            found.add(distances.index(min(distances)))
    return 100 * good / len(samples), 100 * len(found) / len(centers), broken


@pytest.mark.parametrize("modes", [1, 4, 25])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_mode_coverage_against_a_loop(modes, spread):
    random = torch.Generator().manual_seed(modes)
    samples = torch.randn(60, 2, generator=random, dtype=torch.float64) * spread
    samples[7, 1], samples[20, 0], samples[31] = math.nan, math.inf, -math.inf
    centers = grid_modes(modes, 1.0).double()
    found = mode_coverage(samples, centers, 0.1)
    assert found == pytest.approx(coverage_by_hand(samples, centers, 0.1))
    assert found.nonfinite == 3


def test_high_quality_ends_at_exactly_four_std():
    centers = torch.tensor([[0.0, 0.0], [8.0, 0.0]], dtype=torch.float64)
    inside, outside = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, -1.0]]).double()
    beyond = torch.nextafter(outside, 2 * outside)
    assert mode_coverage(inside, centers, 0.25) == (100, 50, 0)
    assert mode_coverage(outside, centers, 0.25) == (100, 50, 0)
    assert mode_coverage(beyond, centers, 0.25) == (0, 0, 0)
    nowhere = torch.full((3, 2), math.nan)
    assert mode_coverage(torch.cat([nowhere, inside]), centers, 0.25) == (25, 50, 3)


def test_the_nearest_mode():
    centers = grid_modes(4, 1.0)
    index, far = nearest_mode(torch.tensor([[-0.5, 0.9], [0.5, 0.5], [3.5, -4.5]]), centers)
    assert index.tolist() == [1, 3, 2]
    assert far.tolist() == pytest.approx([0.4, 0.0, 5.0], abs=1e-6)
    # close to a mode far from the origin, in float32
    centers = grid_modes(100, 100.0)
    _, far = nearest_mode(centers + torch.tensor([0.05, 0.0]), centers)
    assert far.tolist() == pytest.approx([0.05] * 100, abs=5e-5)


# --- data and initial weights -------------------------------------------------------------------


def test_data_are_those_of_modes_seed_and_chunk_whatever_was_drawn_before():
    torch.manual_seed(0)
    expected = draw(SMALL, 25, 1, 3, CPU)
    torch.manual_seed(1)
    draw(SMALL, 25, 1, 2, CPU)
    again = draw(SMALL, 25, 1, 3, CPU)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    for other in ((64, 1, 3), (25, 0, 3), (25, 1, 4)):
        drawn = draw(SMALL, *other, CPU)
        assert not any(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_data_lie_at_the_modes_and_latents_come_from_the_prior(prior):
    settings = Settings(prior=prior, critic_steps=2, batch=64, spacing=3.0, std=0.2, latent=5)
    real, noise = draw(settings, 4, 0, 0, CPU)
    assert real.shape == (CHUNK, 2, 64, 2)
    assert noise.shape == (CHUNK, 3, 64, 5)
    points = real.reshape(-1, 2)
    nearest, _ = nearest_mode(points, grid_modes(4, 3.0))
    assert nearest.bincount().double() / len(points) == pytest.approx([0.25] * 4, abs=0.02)
    assert (points - grid_modes(4, 3.0)[nearest]).std().item() == pytest.approx(0.2, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    if prior == "uniform":
        assert (noise.abs() <= 1).all()
        assert noise.var().item() == pytest.approx(1 / 3, rel=0.02)
    else:
        assert noise.var().item() == pytest.approx(1, rel=0.02)
        assert (noise.abs() > 3).any()


def test_initial_weights_are_those_of_linear_layers():
    settings = Settings(hidden=128, latent=3, layers=3)
    generator, critic = initial_weights(settings, 25, 0)
    for parameters, widths in ((generator, (3, 128, 128, 2)), (critic, (2, 128, 128, 1))):
        layers = zip(parameters[::2], parameters[1::2], widths, widths[1:], strict=False)
        for weight, bias, wide, out in layers:
            like = nn.Linear(wide, out)
            assert weight.shape == like.weight.shape
            assert bias.shape == like.bias.shape
            bound = wide**-0.5  # what nn.Linear documents
            for mine, its in ((weight, like.weight), (bias, like.bias)):
                assert mine.abs().max() <= bound
                assert its.abs().max() <= bound * (1 + 1e-6)
            if wide * out > 1000:
                assert weight.abs().max() > 0.99 * bound
                assert weight.mean().item() == pytest.approx(0, abs=0.02 * bound)
                assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
    for other in ((64, 0), (25, 1)):
        assert not torch.equal(initial_weights(settings, *other)[0][0], generator[0])


def test_arms_of_a_seed_begin_alike():
    training = trained(until=1)
    firsts = {m: i for i, m in enumerate(training.members) if m.arm == "gan"}
    for member, i in firsts.items():
        j = training.members.index(member._replace(arm="top-k"))
        assert torch.equal(training.real[i], training.real[j])
        assert torch.equal(training.noise[i], training.noise[j])
        other = training.members.index(member._replace(seed=1 - member.seed))
        assert not torch.equal(training.real[i], training.real[other])
    begun = trained(until=0)
    for member in firsts:
        assert same(weights(begun, member), weights(begun, member._replace(arm="top-k")))


# --- the stacked networks -----------------------------------------------------------------------


def loss_and_gradients(outputs, inputs) -> list[torch.Tensor]:
    """A scalar that each output pulls at differently, and its gradients."""
    pulls = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return [outputs.detach(), *torch.autograd.grad((outputs * pulls).sum(), inputs)]


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("activation", stacked.ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "batch", "close"),
    [(torch.float64, 64, 1e-13), (torch.float32, 33, 2e-6), (torch.float32, 320, 2e-6)],
)
def test_stacked_networks_and_their_gradients_are_those_of_linear_layers(
    members, activation, dtype, batch, close
):
    settings = Settings(hidden=24, latent=3)
    single = [initial_weights(settings, 25, seed)[0] for seed in range(members)]
    stacked = [torch.stack(p).to(dtype).requires_grad_() for p in zip(*single, strict=True)]
    x = torch.randn(members, batch, 3, dtype=torch.float64).to(dtype).requires_grad_()
    outputs = mlp(stacked, x, activation)
    assert outputs.shape == (members, batch, 2)
    found = loss_and_gradients(outputs, [x, *stacked])

    nets = [network(p, activation).double() for p in single]
    x64 = x.detach().double().requires_grad_()
    plain = torch.stack([net(rows) for net, rows in zip(nets, x64, strict=True)])
    own = [[*net.parameters()] for net in nets]
    expected = loss_and_gradients(plain, [x64, *(p for ps in own for p in ps)])
    outputs, by_x, *rest = expected
    by_parameter = [torch.stack(rest[i :: len(stacked)]) for i in range(len(stacked))]
    for mine, its in zip(found, [outputs, by_x, *by_parameter], strict=True):
        assert (mine - its).norm() <= close * its.norm()


@pytest.mark.parametrize("batch", [32, 33])
def test_a_fixed_network_passes_the_same_gradient_on(batch):
    parameters = [torch.stack([p, -p]).requires_grad_() for p in initial_weights(SMALL, 25, 0)[0]]
    x = torch.randn(2, batch, 2, requires_grad=True)
    found = loss_and_gradients(mlp([p.detach() for p in parameters], x, "tanh"), [x])
    expected = loss_and_gradients(mlp(parameters, x, "tanh"), [x])
    assert same(found, expected)
    # and where nothing but the parameters asks for a gradient
    fixed = loss_and_gradients(mlp(parameters, x.detach(), "tanh"), parameters)
    assert same(fixed, loss_and_gradients(mlp(parameters, x, "tanh"), parameters))


# --- ranking ------------------------------------------------------------------------------------


def test_each_member_is_ranked_by_itself():
    scores = torch.tensor([[0.0, 3, 1, 2], [90, 70, 80, 100], [-5, -7, -7, -7]])
    kept = WithinMembers(4).topk_select(scores.flatten(), torch.tensor(6.0, dtype=torch.float64))
    assert kept.view(3, 4).int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]]
    broken = torch.tensor([[math.nan, 1, 2, math.nan], [1, 2, math.nan, 3]])
    kept = WithinMembers(4).topk_select(broken.flatten(), torch.tensor(6.0, dtype=torch.float64))
    assert kept.view(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]


@pytest.mark.parametrize(("k", "each"), [(1, 1), (4, 1), (7, 1), (8, 2), (16, 4)])
def test_each_member_keeps_as_many_as_alone(k, each):
    scores = torch.arange(16.0)
    kept = WithinMembers(4).topk_select(scores, torch.tensor(float(k), dtype=torch.float64))
    assert kept.view(4, 4).sum(dim=1).tolist() == [each] * 4


# --- training -----------------------------------------------------------------------------------

VARIANTS = {
    "default": SMALL,
    "open settings": dataclasses.replace(
        SMALL, iterations=30, activation="tanh", prior="uniform", critic_steps=2, layers=3,
        latent=5, spacing=2.0, beta1=0.5, beta2=0.9, batch=25,
    ),
    "one row kept": dataclasses.replace(
        SMALL, iterations=30, activation="relu", batch=3, gamma=0.3, nu=0.2, decay_every=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_member_goes_where_a_plain_loop_goes(variant):
    settings = VARIANTS[variant]
    training = trained(settings, dtype=torch.float64)
    assert [m.arm for m in training.members] == ["gan"] * 4 + ["top-k"] * 4
    begun = trained(settings, until=0, dtype=torch.float64)
    for member in MEMBERS:
        plain = Plain(settings, member, torch.float64).advance(settings.iterations)
        assert distance(weights(training, member), plain.weights()) < 1e-12
        assert distance(weights(training, member), weights(begun, member)) > 0.005
        if member.arm == "top-k":
            assert plain.topk.k(settings.batch) < settings.batch
            assert plain.topk.k(settings.batch) == training.topk["top-k"].k(settings.batch)


def test_convolutions_and_matrix_products_go_the_same_way():
    settings = dataclasses.replace(SMALL, batch=64, iterations=10, decay_every=3)
    found, expected = trained(settings), trained(settings, dtype=torch.float64)
    for member in MEMBERS:
        assert distance(weights(found, member), weights(expected, member)) < 1e-5


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_member_alone_goes_where_it_goes_in_a_stack(dtype, close):
    settings = dataclasses.replace(SMALL, batch=64, iterations=12, decay_every=3)
    stacked = trained(settings, dtype=dtype)
    for member in MEMBERS[1::2]:
        alone = trained(settings, [member], dtype=dtype)
        assert distance(weights(alone, member), weights(stacked, member)) < close


def test_arms_part_when_k_falls_below_the_batch():
    training = trained(until=SMALL.decay_every)
    pairs = [(m, m._replace(arm="top-k")) for m in MEMBERS if m.arm == "gan"]
    assert all(same(weights(training, a), weights(training, b)) for a, b in pairs)
    training.advance(SMALL.decay_every + 1)
    assert not any(same(weights(training, a), weights(training, b)) for a, b in pairs)


def test_schedules_keep_what_their_formula_says():
    settings = dataclasses.replace(SMALL, iterations=14, decay_every=1, gamma=0.9, nu=0.5)
    arms = ["top-k", "restore-5-15", "restore-15-25"]
    training = trained(settings, [Member(25, arm, 0) for arm in arms], until=0)
    kept: dict[str, list[int]] = {arm: [] for arm in arms}
    for iteration in range(14):
        training.advance(iteration + 1)
        for arm in arms:
            kept[arm].append(training.topk[arm].k(100))
    fallen = [max(0.9**epoch, 0.5) for epoch in range(1, 15)]
    assert kept["top-k"] == [math.floor(100 * part + 1e-9) for part in fallen]
    low = 0.95**5  # then in ten equal steps to the whole batch
    back = [
        0.95**epoch if epoch <= 5 else low + (1 - low) * (epoch - 5) / 10 for epoch in range(1, 15)
    ]
    assert kept["restore-5-15"] == [math.floor(100 * part + 1e-9) for part in back]
    assert kept["restore-15-25"] == [math.floor(100 * 0.99**epoch + 1e-9) for epoch in range(1, 15)]


def test_the_study_trains_a_variant_without_and_with_top_k():
    settings = dataclasses.replace(SMALL, iterations=24, decay_every=3)
    members = [Member(25, arm, 0) for arm in ("tanh", "top-k+tanh", "ReLU", "top-k+ReLU")]
    assert study.stacks(settings, members, CPU, 1) == [members[:2], members[2:]]
    training = study.Training(settings, members[:2], CPU)
    training.advance(24)
    rows = training.measure()
    assert [(row["arm"], row["kind"]) for row in rows] == [
        ("tanh", "score"), ("top-k+tanh", "score"), ("top-k+tanh", "topk"),
    ]  # fmt: skip
    assert rows[-1]["dropped"] > 0
    for member, arm in zip(training.members, ("gan", "top-k"), strict=True):
        alone = trained(dataclasses.replace(settings, activation="tanh"), [Member(25, arm, 0)])
        assert distance(weights(training, member), weights(alone, alone.members[0])) < 1e-4


def test_the_scores_of_one_member_do_not_concern_another():
    member, settings = Member(25, "top-k", 1), dataclasses.replace(SMALL, gamma=0.5, nu=0.5)
    expected, raised = Training(settings, MEMBERS, CPU), Training(settings, MEMBERS, CPU)
    with torch.no_grad():
        raised.critic[-1][raised.members.index(member)] += 30
    for training in (expected, raised):
        training.advance(20)
    for other in MEMBERS:
        assert same(weights(expected, other), weights(raised, other)) == (other != member)


@pytest.mark.parametrize("batch", [32, 33])
def test_a_member_that_fails_fails_alone(batch):
    settings = dataclasses.replace(SMALL, batch=batch)
    failed = Member(25, "top-k", 0)
    expected, training = trained(settings), trained(settings, until=25)
    with torch.no_grad():
        training.generator[0][training.members.index(failed)] = math.nan
    training.advance(settings.iterations)
    scores = rows_of(training, "score")
    for member in MEMBERS:
        assert same(weights(training, member), weights(expected, member)) == (member != failed)
        assert scores[member]["nonfinite"] == (settings.samples if member == failed else 0)
    assert scores[failed]["high_quality"] == scores[failed]["modes"] == 0
    assert rows_of(training, "samples")[failed]["points"] == []
    json.dumps(training.measure(), allow_nan=False)


# --- what a run keeps ---------------------------------------------------------------------------


def kept_by_hand(settings: Settings, until: int) -> list[int]:
    """k of each iteration."""
    epochs = [iteration // settings.decay_every for iteration in range(until)]
    return [int(max(settings.gamma**e, settings.nu) * settings.batch + 1e-9) for e in epochs]


def test_top_k_proves_what_it_did():
    training = trained()
    proof = rows_of(training, "topk")
    assert set(proof) == {member for member in MEMBERS if member.arm == "top-k"}
    kept = kept_by_hand(SMALL, SMALL.iterations)
    assert 1 < len(set(kept)) < len(kept)
    for row in proof.values():
        assert row["steps"] == SMALL.iterations
        assert row["dropped"] == sum(SMALL.batch - k for k in kept)
        assert row["epochs"] == SMALL.iterations // SMALL.decay_every
        assert row["last_k"] == kept[-1]
        assert row["direction"] == "high"


def test_the_direction_is_found_and_not_assumed(monkeypatch):
    def saturated(x):  # of the critic's loss the sum is asked for as before, but low is realistic
        return -torch.nn.functional.logsigmoid(x)

    monkeypatch.setattr(functional, "softplus", saturated)
    assert {row["direction"] for row in rows_of(trained(), "topk").values()} == {"low"}


def test_measurements():
    training = trained(until=20)
    kinds = [row["kind"] for row in training.measure()]
    assert kinds == ["score"] * len(MEMBERS)
    training.advance(60)
    rows = rows_of(training, "score")
    points = training.sample(SMALL.samples)
    for member, row in rows.items():
        noise = latents(
            SMALL, [SMALL.samples], stream("samples", member.cell, member.seed, device=CPU)
        )
        its = network(weights(training, member)[:8], "leaky_relu")(noise).detach()
        assert torch.allclose(points[training.members.index(member)], its, atol=1e-5)
        expected = coverage_by_hand(its, grid_modes(member.cell, 1.0), SMALL.std)
        assert (row["high_quality"], row["modes"], row["nonfinite"]) == pytest.approx(expected)
        assert row["iteration"] == 60
    shown = rows_of(training, "samples")
    assert set(shown) == {member for member in MEMBERS if member.seed == 0}
    for member, row in shown.items():
        its = points[training.members.index(member)]
        assert torch.allclose(torch.tensor(row["points"]), its, atol=6e-5)


def test_measuring_leaves_no_trace():
    training, undisturbed = Training(SMALL, MEMBERS, CPU), trained()
    for until in range(0, SMALL.iterations, 9):
        training.advance(until)
        assert training.measure() == training.measure()
    training.advance(10**6)
    assert training.iteration == SMALL.iterations
    for member in MEMBERS:
        assert same(weights(training, member), weights(undisturbed, member))


def saved(training: Training) -> dict:
    content = io.BytesIO()
    torch.save(training.state_dict(), content)
    return torch.load(io.BytesIO(content.getvalue()), weights_only=True)


def test_a_resumed_training_ends_bit_identical():
    settings = dataclasses.replace(SMALL, iterations=150, hidden=8)
    members = [member for member in MEMBERS if member.cell == 25]
    expected, stopped, resumed = (Training(settings, members, CPU) for _ in range(3))
    expected.advance(settings.iterations)
    for stop in (37, 100, 131):
        stopped.advance(stop)
        resumed.load_state_dict(saved(stopped))
        assert resumed.iteration == stop
        assert resumed.measure() == stopped.measure()
        resumed.advance(settings.iterations)
        assert resumed.measure() == expected.measure()
        for member in members:
            assert same(weights(resumed, member), weights(expected, member))
            assert not same(weights(stopped, member), weights(expected, member))
        for mine, its in zip(
            saved(resumed)["optimizers"], saved(expected)["optimizers"], strict=True
        ):
            assert len(mine["state"]) == 8
            for index, moments in its["state"].items():
                assert same([mine["state"][index][name] for name in moments], [*moments.values()])


def test_a_checkpoint_of_other_top_k_settings_is_refused():
    state = saved(trained(until=3))
    other = Training(dataclasses.replace(SMALL, gamma=0.9), MEMBERS, CPU)
    with pytest.raises(ResumeMismatch, match=r"gamma: 0.83 in the checkpoint, 0.9 now"):
        other.load_state_dict(state)


def test_stacks_fill_the_cores_of_a_cpu_and_one_gpu():
    for count, workers, sizes in (
        (8, 2, [4, 4]),
        (6, 2, [3, 3]),
        (20, 2, [4] * 5),
        (3, 8, [1] * 3),
    ):
        members = [Member(25, "gan", seed) for seed in range(count)]
        found = stacks(SMALL, members, CPU, workers)
        assert [len(stack) for stack in found] == sizes
        assert sum(found, []) == members
        assert stacks(SMALL, members, torch.device("cuda"), 1) == [members]


def test_activations_of_the_plain_loop_are_all():
    assert set(ACTIVATIONS) == set(stacked.ACTIVATIONS)
