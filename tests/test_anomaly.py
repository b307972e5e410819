"""Table 2's trainings against a literal loop, against the genuine code, and against themselves."""

import copy
import importlib.util
import math
import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import assert_same, error
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from topk_plugin.errors import ConfigError, ResumeMismatch
from topk_plugin.reference.anomaly import (
    ARMS,
    Settings,
    Training,
    average_precision,
    metrics,
    prepare,
    split,
    split_images,
    stacks,
    trapezoid_area,
)
from topk_plugin.reference.anomaly import training as trainings
from topk_plugin.reference.data.named import centred
from topk_plugin.reference.networks import mnist
from topk_plugin.reference.runs import Member
from topk_plugin.reference.training import stream_of

CPU = torch.device("cpu")
SMALL = Settings(
    measure_every=10, meg_epochs=2, meg_latent=6, meg_dim=8, meg_energy_steps=3, gamma=0.5,
    bigan_epochs=2, bigan_batch=50, bigan_latent=6, bigan_dim=2, bigan_learning_rate=1e-3,
    bigan_average=0.5,
)  # fmt: skip
METHODS = ["meg", "bigan"]


@pytest.fixture(autouse=True, scope="module")
def few_digits():
    """Every eighth digit, loaded once."""
    images = split.load(SMALL)
    images = images._replace(pixels=images.pixels[::8], labels=images.labels[::8])
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, trainings):
            patch.setattr(module, "load", lambda settings: images)
        yield


def training(arm: str, settings: Settings = SMALL, seed: int = 0, dtype=torch.float64) -> Training:
    return Training(settings, [Member(4, arm, seed)], CPU, dtype)


def weights(training: Training) -> list[torch.Tensor]:
    return [
        value.clone()
        for network in training.method.networks.values()
        for value in network.state_dict().values()
        if value.is_floating_point()
    ]


def trained(arm: str, settings: Settings = SMALL, until: int = 10**6) -> list[torch.Tensor]:
    run = training(arm, settings)
    run.advance(until)
    return weights(run)


# --- settings and data --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "cifar"), ("dataset", "cifar10"), ("data", 3), ("download", 1),
        ("split", "both"), ("gamma", 0),
        ("nu", 1.1), ("nu", math.nan), ("gamma", "0.5"), ("companions", "auto"), ("meg_batch", 1),
        ("measure_every", 0), ("meg_epochs", 1.5), ("meg_dim", 12), ("bigan_dim", 3),
        ("meg_penalty", math.inf), ("bigan_average", 1.0), ("bigan_weight", -0.1),
        ("bigan_latent", True),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=f"{field}: found .* expected"):
        Settings(**{field: value})


def test_what_cannot_be_trained_is_said_before():
    with pytest.raises(ConfigError, match="bigan_batch: found 200, expected at most the 1"):
        prepare(replace(SMALL, bigan_batch=200), [1], ["bigan"], CPU, print)
    found = prepare(SMALL, [1, 4], ["meg", "bigan"], CPU, print)
    assert (found["name"], found["split"]) == (training("meg").images.name, "disjoint")
    assert (found["images"], found["digest"]) == (225, training("bigan").images.digest)
    with pytest.raises(ConfigError, match="found 0 images of the held-out digit 12"):
        Training(SMALL, [Member(12, "meg", 0)], CPU)
    with pytest.raises(ConfigError, match="found arm 'gan', expected one of bigan, top-k"):
        Training(SMALL, [Member(1, "gan", 0)], CPU)


def test_members_are_trained_alone():
    members = [Member(digit, arm, 0) for digit in (1, 4) for arm in ARMS]
    assert stacks(SMALL, members, CPU, 2) == [[member] for member in members]


@pytest.mark.parametrize("how", ["disjoint", "original"])
def test_splits(how):
    labels = torch.arange(1000) % 10
    train, test, anomalous = split_images(labels, 7, how)
    assert len(train.unique()) == len(train) == 720
    assert not (labels[train] == 7).any()
    assert torch.equal(labels[test] == 7, anomalous)
    assert sorted(test[anomalous].tolist()) == list(range(7, 1000, 10))
    normal = test[~anomalous]
    assert len(normal.unique()) == len(normal) == 180
    shared = torch.isin(normal, train).double().mean()
    assert shared == 0 if how == "disjoint" else 0.7 < shared < 0.9


# --- metrics ------------------------------------------------------------------------------------


def areas_by_hand(anomalous: list[bool], scores: list[float]) -> tuple[float, float]:
    """Both areas from the curve's points, one for each score as a threshold."""
    curve = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        found = [a for a, s in zip(anomalous, scores, strict=True) if s >= threshold]
        curve.append((sum(found) / sum(anomalous), sum(found) / len(found)))
    pairs = list(zip(curve, curve[1:], strict=False))
    steps = sum((right - left) * high for (left, _), (right, high) in pairs)
    trapezoids = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairs)
    return steps, trapezoids


def test_areas_under_the_curve():
    random = np.random.default_rng(0)
    for ties in (1, 10, 1000):
        anomalous, scores = random.random(200) < 0.3, np.round(random.random(200) * ties) / ties
        steps, trapezoids = areas_by_hand(anomalous.tolist(), scores.tolist())
        assert average_precision(anomalous, scores) == pytest.approx(steps, abs=1e-12)
        assert trapezoid_area(anomalous, scores) == pytest.approx(trapezoids, abs=1e-12)
    for broken in (np.nan, np.inf):
        for area in (average_precision, trapezoid_area):
            with pytest.raises(ValueError, match="infinity|NaN"):
                area(np.array([True, False]), np.array([broken, 1.0]))


def test_curves_run_from_0_to_1_in_few_points():
    random = np.random.default_rng(0)
    anomalous, scores = random.random(3000) < 0.3, random.random(3000)
    scores[anomalous] += 0.3
    points = np.array(metrics.curve_points(anomalous, scores))
    assert len(points) <= metrics.CURVE_POINTS
    recall, precision = points.T
    assert (recall[0], recall[-1]) == (0, 1)
    assert (np.diff(recall) > 0).all()
    area = (np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum()
    assert area == pytest.approx(trapezoid_area(anomalous, scores), abs=0.01)


@pytest.mark.parametrize(
    ("build", "normal"),
    [
        (mnist.meg_generator, (nn.ConvTranspose2d,)),
        (lambda latent, dim: mnist.meg_energy(dim), (nn.Conv2d,)),
        (mnist.MegStatistics, (nn.Conv2d,)),
        (mnist.bigan_generator, (nn.ConvTranspose2d, nn.Linear)),
        (mnist.bigan_encoder, (nn.Conv2d, nn.Linear)),
        (mnist.BiganCritic, (nn.Conv2d, nn.Linear)),
    ],
)
def test_initial_weights(build, normal):
    """Those that are drawn anew have a standard deviation of 0.02."""
    torch.manual_seed(0)
    network = build(64, 64)
    drawn = [m for m in network.modules() if isinstance(m, normal)]
    assert drawn
    for layer in drawn:
        tolerance = 0.1 if layer.weight.numel() > 1000 else 0.4
        assert layer.weight.std().item() == pytest.approx(0.02, rel=tolerance)
        if nn.Linear in normal:
            assert not layer.bias.any()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        expected = 0.0 if nn.Linear in normal else 0.02
        assert norm.weight.std().item() == pytest.approx(expected, rel=0.6)


# --- one training is another ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_arms_are_the_same_while_k_is_the_batch(method):
    full = replace(SMALL, gamma=1.0)
    assert_same(weights(training(f"top-k+{method}")), weights(training(method)))
    assert_same(trained(f"top-k+{method}", full), trained(method, full))
    assert error(trained(f"top-k+{method}"), trained(method)) > 1e-6
    assert error(weights(training(method, seed=1)), weights(training(method))) > 1e-2


def test_dropped_rows_of_the_mutual_information():
    """They follow only where that is asked for, and then the generator alone feels it."""
    kept = training("top-k+meg")
    followed = training("top-k+meg", replace(SMALL, companions="follow"))
    for run in (kept, followed):
        run.advance(run.batches)
        assert run.topk.k(64) == 32
        run.method._generator_step(torch.ones(64, 6).double().cumsum(0) / 64, run.noise)
    mine, theirs = kept.method.networks, followed.method.networks
    assert_same([*mine["statistics"].parameters()], [*theirs["statistics"].parameters()])
    found, expected = ([p.grad for p in n["generator"].parameters()] for n in (mine, theirs))
    assert error(found, expected) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_the_same(tmp_path, method):
    """To the bit, also where it was cut within an epoch in which k is below the batch."""
    arm = f"top-k+{method}"
    whole = training(arm, dtype=torch.float32)
    whole.advance(whole.iterations)

    first = training(arm, dtype=torch.float32)
    cut = whole.batches + 1
    first.advance(cut)
    first.measure()
    assert first.iteration == cut
    torch.save(first.state_dict(), tmp_path / "state.pt")

    torch.rand(7)  # the global stream is nobody's
    second = training(arm, dtype=torch.float32)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(weights(second), weights(first))
    second.advance(10**6)
    assert_same(weights(second), weights(whole))
    assert error(weights(second), weights(first)) > 1e-6
    assert second.measure() == whole.measure()
    assert second.iteration == whole.iterations == 2 * whole.batches
    for name, optimizer in whole.method.optimizers.items():
        found = second.method.optimizers[name].state.values()
        for a, b in zip(found, optimizer.state.values(), strict=True):
            assert_same([a["exp_avg_sq"], a["step"]], [b["exp_avg_sq"], b["step"]])

    # and once more at the end, where nothing is left to train
    third = training(arm, dtype=torch.float32)
    third.load_state_dict(second.state_dict())
    assert third.measure() == whole.measure()


def test_a_checkpoint_of_another_training_is_refused():
    state = training("meg").state_dict()
    with pytest.raises(ResumeMismatch, match="member: .4, 'meg', 0. in the checkpoint, .4, 'meg'"):
        training("meg", seed=1).load_state_dict(state)
    with pytest.raises(ResumeMismatch, match="digest: 'other' in the checkpoint"):
        training("meg").load_state_dict(state | {"digest": "other"})
    state = training("top-k+meg").state_dict()
    with pytest.raises(ResumeMismatch, match="gamma"):
        training("top-k+meg", replace(SMALL, gamma=0.9)).load_state_dict(state)


def test_epochs_batches_and_data_order():
    """MEG's order is fixed and its last batch partial; BiGAN shuffles twice, whole batches only."""
    meg, bigan = training("meg"), training("bigan")
    assert len(meg.train) == len(bigan.train) == 164
    assert (meg.batches, meg.iterations) == (3, 6)
    assert (bigan.batches, bigan.iterations) == (3, 6)
    seen = {"meg": [], "bigan": []}
    for name, run in (("meg", meg), ("bigan", bigan)):
        run.method.step = lambda iteration, noise, *x, name=name: seen[name].append(x)
        run.advance(run.iterations)
    first, second = (torch.cat([x for (x,) in seen["meg"][i : i + 3]]) for i in (0, 3))
    assert [len(x) for (x,) in seen["meg"]] == [64, 64, 36] * 2
    expected = meg.pixels[meg.train] / 255.0 * 2 - 1
    torch.testing.assert_close(first, expected.double(), atol=1e-6, rtol=0)
    assert torch.equal(second, first)
    passes = [torch.cat([pair[i] for pair in seen["bigan"][epoch : epoch + 3]])
              for epoch in (0, 3) for i in (0, 1)]  # fmt: skip
    for x in passes:
        assert len(x.unique(dim=0)) == len(x) == 150
    assert len({tuple(x.flatten().tolist()) for x in passes}) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device_inside_a_step(tmp_path, method):
    arm, device = f"top-k+{method}", torch.device("cuda")
    run = Training(SMALL, [Member(4, arm, 0)], device)
    assert_same([w.cpu() for w in weights(run)], weights(training(arm, dtype=torch.float32)))
    run.advance(run.batches + 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.advance(run.iterations)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.save(run.state_dict(), tmp_path / "state.pt")
    again = Training(SMALL, [Member(4, arm, 0)], device)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(weights(again), weights(run))
    assert run.measure()[-1]["dropped"] > 0


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_run(method):
    run = training(f"top-k+{method}", dtype=torch.float32)
    run.advance(1)
    before = torch.get_rng_state()
    early = run.measure()
    assert torch.equal(torch.get_rng_state(), before)
    assert {row["kind"] for row in early} == {"score"}
    run.advance(run.iterations)
    last = run.measure()
    assert [row["kind"] for row in last] == ["score", "curve"] * 2 + ["topk"]
    for row in early + last:
        assert (row["cell"], row["arm"], row["seed"]) == (4, f"top-k+{method}", 0)
    names = [row["score"] for row in last if row["kind"] == "score"]
    expected = ["energy", "input-gradient norm"]
    assert names == (expected if method == "meg" else ["cross-entropy", "feature matching"])
    for row in early + last[:-1:2]:
        assert row["normal"] == 41
        assert row["chance"] == row["anomalous"] / (row["normal"] + row["anomalous"])
        assert 0 < row["average_precision"] < 1
        assert 0 < row["trapezoid"] < 1
        assert (row["split"], row["nonfinite"]) == ("disjoint", 0)
        assert row["data"] == "digits, 1,797 of 8x8, resized to 28x28"
        assert len(row["digest"]) == 64
    assert [row["epoch"] for row in early + last[:1]] == [0, 0, 2]
    proof = last[-1]
    steps, batch = (2, 64) if method == "meg" else (6, 50)
    assert proof["direction"] == ("low" if method == "meg" else "high")
    assert (proof["steps"], proof["epochs"], proof["last_k"]) == (steps, 2, batch // 2)
    assert (proof["rows"], proof["nonfinite"]) == (steps * batch, 0)
    assert proof["dropped"] == steps // 2 * (batch // 2)
    assert training(method).measure()[-1]["kind"] == "score"


@pytest.mark.parametrize("method", METHODS)
def test_nan_scores_give_no_area(method):
    run = training(method)
    name = "energy" if method == "meg" else "averaged encoder"
    with torch.no_grad():
        next(run.method.networks[name].parameters()).fill_(math.nan)
    run.iteration = run.iterations
    rows = run.measure()
    assert [row["kind"] for row in rows] == ["score", "score"]
    for row in rows:
        assert row["nonfinite"] == row["normal"] + row["anomalous"]
        assert row["average_precision"] is row["trapezoid"] is None


# --- literal forms --------------------------------------------------------------------------------


class Draws:
    """The noise of one iteration again, in the order in which the training drew it."""

    def __init__(self, run: Training, iteration: int) -> None:
        seed = stream_of(run.member, "noise", iteration).initial_seed()
        self.stream = torch.Generator().manual_seed(seed)

    def latents(self, rows: int, latent: int) -> torch.Tensor:
        return torch.empty(rows, latent).double().normal_(generator=self.stream)

    def order(self, rows: int) -> torch.Tensor:
        return torch.rand(rows, generator=self.stream).argsort()

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x).bernoulli_(0.5, generator=self.stream) * 2


def plain_adam(networks: dict[str, nn.Module], rate: float, betas: tuple[float, float]):
    return {
        name: torch.optim.Adam(network.parameters(), rate, betas, foreach=False)
        for name, network in networks.items()
    }


def fresh(run: Training, names: list[str]) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(run.method.networks[name]) for name in names}


def test_meg_is_its_literal_loop():
    """Six iterations, the last three of them with k at half the batch."""
    run = training("top-k+meg")
    networks = fresh(run, ["generator", "energy", "statistics"])
    generator, energy, statistics = networks.values()
    optimizers = plain_adam(networks, 1e-4, (0.5, 0.9))
    images = run.pixels[run.train].double() / 127.5 - 1
    for iteration in range(6):
        draws, batch = Draws(run, iteration), iteration % 3
        real = images[64 * batch : 64 * batch + 64].clone().requires_grad_()
        fake = generator(draws.latents(64, 6)).detach()
        [slope] = torch.autograd.grad(energy(real).sum(), real, create_graph=True)
        loss = energy(real).mean() - energy(fake).mean() + 100 * (slope**2).mean()
        optimizers["energy"].zero_grad()
        loss.backward()
        optimizers["energy"].step()
        if iteration % 3 == 2:
            k = 64 if iteration == 2 else 32
            z = draws.latents(64, 6)
            fake = generator(z)
            lowest = energy(fake).topk(k, largest=False).values
            pairs = [statistics(fake, z), statistics(fake, z[draws.order(64)])]
            truth = torch.cat([torch.ones(64), torch.zeros(64)]).double()
            loss = lowest.mean() + cross_entropy(torch.cat(pairs), truth)
            for name in ("generator", "statistics"):
                optimizers[name].zero_grad()
            loss.backward()
            optimizers["generator"].step()
            optimizers["statistics"].step()
    start = weights(run)
    run.advance(6)
    literal = [v for n in networks.values() for v in n.state_dict().values()]
    literal = [value for value in literal if value.is_floating_point()]
    assert error(weights(run), literal) < 1e-9
    assert error(start, literal) > 1e-6
    assert error(trained("meg", until=6), literal) > 1e-6


def bigan_critic(critic: mnist.BiganCritic, x, z, draws: Draws) -> torch.Tensor:
    """Scores with dropout behind each hidden layer."""
    x = critic.first(x)
    x = critic.second(x * draws.mask(x))
    x = (x * draws.mask(x)).flatten(1)
    z = critic.latent(z)
    joint = critic.joint(torch.cat([x, z * draws.mask(z)], 1))
    return critic.score(joint * draws.mask(joint)).flatten()


def test_bigan_is_its_literal_loop():
    """Six iterations, the last three of them with k at half the batch."""
    run = training("top-k+bigan")
    names = ["generator", "encoder", "critic"]
    networks = fresh(run, names)
    generator, encoder, critic = networks.values()
    averages = [[p.detach().clone() for p in network.parameters()] for network in networks.values()]
    optimizers = plain_adam(networks, 1e-3, (0.5, 0.999))
    ones, zeros = torch.ones(50).double(), torch.zeros(50).double()
    images = run.pixels[run.train].double() / 127.5 - 1
    norms = [m for n in networks.values() for m in n.modules() if hasattr(m, "running_mean")]

    def remembered() -> list[list[torch.Tensor]]:
        return [[m.running_mean.clone(), m.running_var.clone()] for m in norms]

    def restore(kept: list[list[torch.Tensor]], network: nn.Module) -> None:
        """Running statistics of all norms but the network's own are what they were."""
        for norm, (mean, var) in zip(norms, kept, strict=True):
            if norm not in [*network.modules()]:
                norm.running_mean, norm.running_var = mean, var

    for iteration in range(6):
        draws, (epoch, batch) = Draws(run, iteration), divmod(iteration, 3)
        orders = stream_of(run.member, "order", epoch)
        first, second = (
            images[torch.randperm(164, generator=orders)[50 * batch : 50 * batch + 50]]
            for _ in range(2)
        )  # fmt: skip
        kept = remembered()
        z = draws.latents(50, 6)
        fake, code = generator(z).detach(), encoder(first).detach()
        loss = cross_entropy(bigan_critic(critic, first, code, draws), ones)
        loss = loss + cross_entropy(bigan_critic(critic, fake, z, draws), zeros)
        restore(kept, critic)
        optimizers["critic"].zero_grad()
        loss.backward()
        optimizers["critic"].step()

        kept = remembered()
        z = draws.latents(50, 6)
        fake, code = generator(z), encoder(second)
        encoded = bigan_critic(critic, second, code, draws)
        k = 50 if epoch == 0 else 25
        best = bigan_critic(critic, fake, z, draws).topk(k).values
        generator(code.detach())
        restore(kept, nn.ModuleList([generator, encoder]))
        for name in names[:2]:
            optimizers[name].zero_grad()
        cross_entropy(best, ones[:k]).backward(inputs=[*generator.parameters()], retain_graph=True)
        cross_entropy(encoded, zeros).backward(inputs=[*encoder.parameters()])
        optimizers["generator"].step()
        optimizers["encoder"].step()
        for average, network in zip(averages, networks.values(), strict=True):
            for mean, p in zip(average, network.parameters(), strict=True):
                mean.copy_(0.5 * mean + 0.5 * p.detach())

    start = weights(run)
    run.advance(6)
    literal = [v for n in networks.values() for v in n.state_dict().values()]
    literal = [value.detach() for value in literal if value.is_floating_point()]
    count = len(literal)
    assert error(weights(run)[:count], literal) < 1e-9
    assert error(start[:count], literal) > 1e-6
    assert error(trained("bigan")[:count], literal) > 1e-6
    found = [p for name in names for p in run.method.averaged[name].parameters()]
    assert error(found, [p for average in averages for p in average]) < 1e-9
    assert not any(p.requires_grad for p in found)  # nor do they hold the graphs of all steps
    # the networks' own running statistics, which are never averaged
    shared = [b for name in names for b in run.method.averaged[name].buffers()]
    own = [b for name in names for b in run.method.networks[name].buffers()]
    assert all(a is b for a, b in zip(shared, own, strict=True))


def test_anomaly_scores_of_meg():
    run = training("meg")
    x = centred(run.pixels[:9], torch.float64)
    energy = run.method.networks["energy"]
    found = run.method.anomaly_scores(x)
    torch.testing.assert_close(found["energy"], energy(x).detach())
    for image, norm in zip(x, found["input-gradient norm"], strict=True):
        slope = torch.autograd.functional.jacobian(lambda image: energy(image[None]), image)
        torch.testing.assert_close(norm, slope.square().sum().sqrt())
    assert not x.requires_grad


def test_anomaly_scores_of_bigan():
    run = training("bigan")
    run.advance(2)
    averaged = run.method.averaged
    averaged["critic"].score.bias.fill_(3.0)  # far from where its sign makes no difference
    x = centred(run.pixels[:9], torch.float64)
    code = averaged["encoder"].eval()(x)
    made = averaged["generator"].eval()(code)
    score, features = averaged["critic"].eval()(made, code)
    missed = (x - made).abs().sum(dim=(1, 2, 3))
    doubt = cross_entropy(score, torch.ones_like(score), reduction="none")
    match = (averaged["critic"](x, code)[1] - features).abs().sum(dim=1)
    found = run.method.anomaly_scores(x)
    torch.testing.assert_close(found["cross-entropy"], 0.9 * missed + 0.1 * doubt)
    torch.testing.assert_close(found["feature matching"], 0.9 * missed + 0.1 * match)
    assert not torch.allclose(found["cross-entropy"], found["feature matching"])
    assert all(network.training for network in (run.method.generator, run.method.critic))


# --- the genuine code -----------------------------------------------------------------------------

MEG = Path(
    os.environ.get("TOPK_UPSTREAMS", "/nowhere"),
    "ritheshkumar95+energy_based_generative_models",
)


@pytest.fixture
def genuine(monkeypatch):
    """Loads a file of MEG's checkout, on a machine without CUDA."""
    if not MEG.is_dir():
        pytest.skip(f"no checkout {MEG.name} in the folder TOPK_UPSTREAMS")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.syspath_prepend(MEG)

    def load(path: str):
        spec = importlib.util.spec_from_file_location(f"meg_{Path(path).stem}", MEG / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] == "networks"]:
        del sys.modules[name]


def by_name(ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Our parameters' and buffers' names by theirs; they keep some layers in another order."""
    order = ["main.", "expand.", "classify."]
    if type(theirs).__name__ == "Generator":
        order = ["expand.", "main."]
    names = sorted(theirs.state_dict(), key=lambda name: [name.startswith(o) for o in order][::-1])
    return dict(zip(names, ours.state_dict(), strict=True))


def load_ours(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    values = ours.state_dict()
    theirs.double().load_state_dict({a: values[b] for a, b in by_name(ours, theirs).items()})
    return theirs


@pytest.mark.upstream
def test_meg_is_the_genuine_one(genuine, monkeypatch):
    """Networks of the genuine size, and its own two steps, weights and noise being the same."""
    networks, functions = genuine("networks/mnist.py"), genuine("scripts/train/functions.py")
    monkeypatch.setattr(torch, "randn", lambda *shape: draws.latents(*shape))
    monkeypatch.setattr(torch, "randperm", lambda rows: draws.order(rows))
    full = Settings()
    ours = {
        "G": mnist.meg_generator(full.meg_latent, full.meg_dim),
        "E": mnist.meg_energy(full.meg_dim),
        "H": mnist.MegStatistics(full.meg_latent, full.meg_dim),
    }
    theirs = {
        "G": networks.Generator(), "E": networks.EnergyModel(), "H": networks.StatisticsNetwork()
    }  # fmt: skip
    for name, network in ours.items():
        by_name(network, theirs[name])
        count = sum(p.numel() for p in network.parameters())
        assert count == sum(p.numel() for p in theirs[name].parameters())
    for mine, genuine_one in (
        (mnist.meg_generator, networks.Generator), (mnist.MegStatistics, networks.StatisticsNetwork)
    ):  # fmt: skip
        torch.manual_seed(0)
        expected = genuine_one(z_dim=6, dim=16)
        torch.manual_seed(0)
        assert_same([*mine(6, 16).parameters()], [*expected.parameters()])

    run = training("meg")
    built = [networks.Generator(1, 6, 8), networks.EnergyModel(1, 8),
             networks.StatisticsNetwork(1, 6, 8)]  # fmt: skip
    names = ["generator", "energy", "statistics"]
    netG, netE, netH = map(load_ours, (run.method.networks[n] for n in names), built)
    adam = [torch.optim.Adam(n.parameters(), 1e-4, (0.5, 0.9)) for n in (netG, netE, netH)]
    arguments = Namespace(batch_size=64, z_dim=6, lamda=100)
    images = run.pixels[run.train].double() / 127.5 - 1
    for iteration in range(6):
        draws, batch = Draws(run, iteration), iteration % 3
        real = images[64 * batch : 64 * batch + 64]
        functions.train_energy_model(real, netG, netE, adam[1], arguments, [])
        if iteration % 3 == 2:
            functions.train_generator(netG, netE, netH, adam[0], adam[2], arguments, [])
    monkeypatch.undo()
    start = weights(run)
    run.advance(6)
    literal = []
    for name, network in zip(names, (netG, netE, netH), strict=True):
        values, ours = network.state_dict(), run.method.networks[name]
        back = {b: a for a, b in by_name(ours, network).items()}
        literal += [values[back[b]] for b in ours.state_dict()]
    literal = [value for value in literal if value.is_floating_point()]
    assert error(weights(run), literal) < 1e-9
    assert error(start, literal) > 1e-6


@pytest.mark.upstream
def test_the_original_split_is_the_genuine_one(genuine, monkeypatch):
    """Four in five of its normal test images were trained on."""
    data = genuine("data/mnist_anomaly.py")
    count = 2000
    position = np.repeat(np.arange(count, dtype=np.float64)[:, None], 784, axis=1)
    labels = (np.arange(count) * 7 % 10).astype(np.uint8)
    parts = {"train": slice(0, 1000), "test": slice(1000, 1500), "valid": slice(1500, count)}
    arrays = {f"x_{name}": position[rows] for name, rows in parts.items()}
    arrays |= {f"y_{name}": labels[rows] for name, rows in parts.items()}
    monkeypatch.setattr(np, "load", lambda path: arrays)
    train, _ = data.get_train(4)
    test, anomalous = data.get_test(4)
    train, test = (x[:, 0, 0, 0].astype(int).tolist() for x in (train, test))
    found = split_images(torch.from_numpy(labels), 4, "original")
    assert found.train.tolist() == train
    assert sorted(found.test.tolist()) == sorted(test)
    assert found.anomalous.sum() == anomalous.sum()
    normal = np.array(test)[np.array(anomalous) == 0]
    assert 0.75 < np.isin(normal, train).mean() < 0.85
