"""Table 3's trainer: against a plain loop, resumed, in parts, on two ranks, with bad input."""

import copy
import dataclasses
import io
import json
import math

import pytest
import torch
from image_runs import (
    CPU,
    EPOCH,
    SIZE,
    TINY,
    attend_to_small_images,
    changed,
    of_thousand_classes,
    of_two,
    shorten_epochs,
    without_norms,
)
from PIL import Image
from torch import multiprocessing
from torch.nn import functional
from torch.nn.utils import parametrize

from topk_plugin.cli import main
from topk_plugin.errors import ConfigError, ResumeMismatch, RunError
from topk_plugin.reference import images
from topk_plugin.reference.data import batches
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.images import Settings, Training, scoring
from topk_plugin.reference.models import ARMS, MODELS, Arm
from topk_plugin.reference.report import read_run
from topk_plugin.reference.runs import Member, Request, load_checkpoint, ranks, reproduce


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Where features are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def attention_of_small_images(monkeypatch):
    attend_to_small_images(monkeypatch)


@pytest.fixture
def short_epochs(monkeypatch):
    shorten_epochs(monkeypatch)


def training(arm: str, settings: Settings = TINY, seed: int = 0, dtype=torch.float64) -> Training:
    return Training(settings, [Member(SIZE, arm, seed)], CPU, dtype)


def sample(found: Training, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return found.scoring.sample(found.sampled, z, y)


def weights(trained: Training) -> torch.Tensor:
    networks = trained.generator, trained.critic
    return torch.cat([p.detach().flatten() for n in networks for p in n.parameters()])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def rows_of(job) -> list[dict]:
    return [json.loads(line) for line in (job / "metrics.jsonl").open()]


def at_the_end(trained: Training) -> list[dict]:
    """Its rows, were it to end now."""
    trained.iterations = trained.iteration
    return trained.measure()


# --- against a plain loop -----------------------------------------------------------------------


def moved(x: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The augmentation, pixel by pixel."""
    most = SIZE // 8
    rows = []
    for image, (flip, down, right) in zip(x, draws.tolist(), strict=True):
        if flip < 0.5:
            image = image.flip(2)
        shifts = [math.floor(draw * (2 * most + 1)) - most for draw in (down, right)]
        padded = functional.pad(image[None], [most] * 4, mode="reflect")[0]
        top, left = (most - shift for shift in shifts)
        rows.append(padded[:, top : top + SIZE, left : left + SIZE])
    return torch.stack(rows)


def generated(generator, latents: list, y: torch.Tensor, at_once: bool) -> list[torch.Tensor]:
    """BatchNorm sees all of the latents at once, or each of them alone."""
    if at_once:
        return [*generator(torch.cat(latents), y.repeat(len(latents))).chunk(len(latents))]
    return [generator(z, y) for z in latents]


def plain(arm: Arm, iterations: int) -> torch.Tensor:
    """The same GAN by a loop that is written out, with the paper's own line of top-k."""

    def kept(whose: str) -> int:
        gamma, nu = arm.gamma or 0.8, arm.nu or 0.5
        return math.floor(max(gamma ** (step // EPOCH), nu) * 8 + 1e-9) if whose in arm.topk else 8

    name = arm.model
    begun = training(name)  # for its first weights, its data and its noise
    model, generator, critic = MODELS[name], begun.generator, begun.critic
    if model.optimizer == "rmsprop":
        make = torch.optim.RMSprop
        optimizers = make(generator.parameters(), 5e-5), make(critic.parameters(), 5e-5)
    else:
        optimizers = [
            torch.optim.Adam(
                network.parameters(), rate, betas=model.betas, weight_decay=model.weight_decay
            )
            for network, rate in (
                (generator, model.learning_rate), (critic, model.critic_learning_rate),
            )
        ]  # fmt: skip
    step = 0
    for iteration in range(iterations):
        begun.iteration = iteration
        if model.decays:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 2e-4 * (1 - iteration / 6)
        for i in range(model.critic_steps):
            real, y = begun.images.at(step)
            real, noise = real.double(), begun.noise.at(begun.iteration, i)
            if name in ("wgan-gp", "sngan"):
                share = torch.rand(real.shape, generator=begun.noise.generator)
                real = ((real + 1) / 2 * 255 + share) / 256 * 2 - 1
            loss = 0.0
            labels = y if name == "msgan" else noise.y
            latents = [noise.z]
            if name == "msgan":
                latents.append(noise.other)
            if name == "icr-biggan":
                latents.append(noise.z + 0.05 * noise.other)
            with torch.no_grad():
                fakes = generated(generator, latents, labels, name == "msgan")
            near = fakes[-1]
            for fake in fakes if name == "msgan" else fakes[:1]:
                images, of = [real, fake], [y, labels]
                if name == "icr-biggan":
                    images += [
                        moved(real, noise.moves[:, :3]),
                        moved(fake, noise.moves[:, 3:]),
                        near,
                    ]
                    of += [y, labels, labels]
                r, f, *others = critic(torch.cat(images), torch.cat(of)).chunk(len(of))
                if "BatchNorm" in str(critic):
                    r, f = critic(real, y), critic(fake, labels)
                if name in ("dcgan", "msgan"):
                    one, zero = torch.ones_like(r), torch.zeros_like(f)
                    loss = loss + functional.binary_cross_entropy(r.sigmoid(), one)
                    loss = loss + functional.binary_cross_entropy(f.sigmoid(), zero)
                elif name in ("wgan", "wgan-gp"):
                    loss = loss + f.mean() - r.mean()
                else:
                    best = f.topk(kept("critic")).values
                    loss = loss + (1 - r).clamp(min=0).mean() + (1 + best).clamp(min=0).mean()
                if name == "icr-biggan":
                    loss = loss + 10 * ((r - others[0]) ** 2).mean()
                    loss = loss + 10 * ((f - others[1]) ** 2).mean()
                    loss = loss + 20 * ((f - others[2]) ** 2).mean()
            if name == "wgan-gp":
                between = [a + m * (b - a) for a, b, m in zip(real, fake, noise.mix, strict=True)]
                for x in between:
                    x = x[None].requires_grad_()
                    [slope] = torch.autograd.grad(critic(x, None).sum(), x, create_graph=True)
                    loss = loss + 10 * (slope.norm() - 1) ** 2 / len(between)
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            step += 1
            if name == "wgan":
                for parameter in critic.parameters():
                    parameter.data.clamp_(-0.01, 0.01)
        noise, loss = begun.noise.at(begun.iteration, model.critic_steps), 0.0
        latents = [noise.z] + [noise.other] * (name == "msgan")
        if name == "icr-biggan":
            latents.append(noise.z + 0.05 * noise.other)
        fakes = generated(generator, latents, noise.y, name == "msgan")
        for fake in fakes if name == "msgan" else fakes[:1]:
            best = critic(fake, noise.y).topk(kept("generator")).values
            if name in ("dcgan", "msgan"):
                one = torch.ones_like(best)
                loss = loss + functional.binary_cross_entropy(best.sigmoid(), one)
            else:
                loss = loss - best.mean()
        if name == "msgan":
            of_images, of_latents = (a - b for a, b in (fakes, latents))
            loss = loss + 1 / (of_images.abs().mean() / of_latents.abs().mean() + 1e-5)
        if name == "icr-biggan":
            loss = loss - 0.5 * ((fakes[0] - fakes[1]) ** 2).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
    return weights(begun)


@pytest.mark.parametrize(
    "name", [*(f"top-k+{model}" for model in MODELS), "gamma=0.75", "nu=0.75", "critic", "both"]
)
def test_an_arm_goes_where_a_plain_loop_goes(name, short_epochs):
    arm, found = ARMS[name], training(name)
    found.advance(3)
    assert apart(weights(found), plain(arm, 3)) < 1e-9
    one_less = dataclasses.replace(arm, topk=arm.topk[1:])
    assert apart(weights(found), plain(one_less, 3)) > 1e-6
    proofs = {row["of"]: row for row in at_the_end(found) if row["kind"] == "topk"}
    assert tuple(proofs) == arm.topk
    for whose, row in proofs.items():
        steps = 3 * (MODELS[arm.model].critic_steps if whose == "critic" else 1)
        assert (row["steps"], row["direction"]) == (steps, "high")
        assert row["dropped"] > 0


def test_both_arms_of_a_model_are_the_same_until_k_decays(short_epochs):
    pairs = [training(arm) for arm in ("dcgan", "top-k+dcgan")]
    for until, same in ((0, True), (1, True), (6, False)):
        for one in pairs:
            one.advance(until)
        assert torch.equal(*map(weights, pairs)) == same
    assert not torch.equal(weights(training("dcgan")), weights(training("dcgan", seed=1)))


@pytest.mark.parametrize("name", ["dcgan", "wgan-gp", "msgan"])
def test_a_batch_in_parts_gives_the_same_gradients(name, monkeypatch):
    without_norms(monkeypatch)
    whole, parts = training(name), training(name, changed(accumulation=4))
    for one in (whole, parts):
        one.advance(2)
    if name != "msgan":  # whose diversity is a ratio of means over a part
        assert apart(weights(parts), weights(whole)) < 1e-9
    rows = [one.measure()[0] for one in (whole, parts)]
    assert rows[0]["critic"] == pytest.approx(
        rows[1]["critic"], rel=1e-3 if name == "msgan" else 1e-9
    )


def test_k_is_of_the_part_that_is_ranked_at_a_time(short_epochs):
    found = training("top-k+dcgan", changed(accumulation=2))
    found.advance(6)
    report = found.topk.report()
    kept = [
        2 * max(math.floor(max(0.8 ** ((i + 1) // EPOCH), 0.5) * 4 + 1e-9), 1) for i in range(6)
    ]
    assert (report.steps, report.dropped) == (6, sum(8 - k for k in kept))


# --- measuring ----------------------------------------------------------------------------------


def test_rows_say_what_makes_a_score_comparable(short_epochs):
    found = training("top-k+sngan", dtype=torch.float32)
    found.advance(2)
    [loss] = found.measure()
    assert loss["kind"] == "loss"
    assert (loss["epoch"], loss["k"]) == (5, 4)
    assert all(math.isfinite(loss[n]) for n in ("critic", "generator", "real_score", "fake_score"))
    found.advance(6)
    rows = {row["kind"]: row for row in found.measure()}
    assert list(rows) == ["loss", "score", "sheet", "topk"]
    score = rows["score"]
    assert score["score"].startswith("Frechet distance by classifier of digits")
    assert (score["real"], score["fake"], score["average"]) == (1797, 60, 0.0)
    assert score["fid"] > 0
    assert score["data_digest"] == found.images.digest
    assert rows["topk"]["steps"] == 6
    assert found.measure() == [*rows.values()]  # it left no trace
    [(name, content)] = found.files().items()
    assert name == rows["sheet"]["file"] == "samples-0000006.png"
    assert Image.open(io.BytesIO(content)).size == (8 * (SIZE + 1) + 1,) * 2


def test_losses_are_means_since_the_last_measurement():
    found, expected = training("dcgan"), []
    for until in (1, 2, 3, 4):
        found.advance(until)
        [row, *_] = found.measure()
        expected.append(row["critic"])
    # the rows of a training that stops at each of its iterations are running means
    first, second = 2 * expected[1] - expected[0], 2 * expected[3] - expected[2]
    again = training("dcgan", changed(measure_every=1, score_every=6))
    for until in (1, 2, 3, 4):
        again.advance(until)
        [row, *_] = again.measure()
        if until in (2, 4):
            assert row["critic"] == pytest.approx(first if until == 2 else second)


def test_a_generator_that_is_not_finite_gets_no_score():
    found = training("dcgan", dtype=torch.float32)
    found.advance(5)
    with torch.no_grad():
        found.generator.layers[0].weight[0, 0] = math.nan
    found.advance(6)
    rows = {row["kind"]: row for row in found.measure()}
    assert rows["score"]["fid"] is None
    assert rows["score"]["nonfinite"] == 60
    assert rows["loss"]["generator"] is None
    json.dumps([*rows.values()], allow_nan=False)


def test_averaged_weights_follow_and_are_those_that_are_sampled():
    found = training("dcgan", changed(average=0.75))
    expected = [p.detach().clone() for p in found.generator.parameters()]
    for until in (1, 2, 3):
        found.advance(until)
        for mean, latest in zip(expected, found.generator.parameters(), strict=True):
            mean.mul_(0.75).add_(latest.detach(), alpha=0.25)
    for mean, its in zip(expected, found.averaged.parameters(), strict=True):
        assert (mean - its).abs().max() < 1e-12
    plain = training("dcgan")
    plain.advance(3)
    z, y = torch.randn(4, 100, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(weights(plain), weights(found))
    assert not torch.equal(sample(found, z, y), sample(plain, z, y))


def test_averaged_weights_are_the_latest_ones_until_the_model_averages(monkeypatch):
    late = dataclasses.replace(MODELS["biggan"], average=0.75, average_from=2)
    monkeypatch.setitem(MODELS, "biggan", late)
    found = training("biggan")
    for until, same in ((1, True), (2, True), (3, False)):
        found.advance(until)
        pairs = zip(found.averaged.parameters(), found.generator.parameters(), strict=True)
        assert all(torch.equal(mean, latest) for mean, latest in pairs) == same
        [score] = [row for row in at_the_end(found) if row["kind"] == "score"]
        assert score["average"] == (0.0 if same else 0.75)
        found.iterations = 6
    assert training("biggan", changed(average=0.0)).averaged is None


@pytest.mark.parametrize("of", ["files", "scores"])
def test_averaged_weights_have_statistics_of_their_own(of):
    found = training("sagan", changed(average=0.9, iterations=12))
    found.advance(12)
    before = {name: b.clone() for name, b in found.generator.named_buffers()}
    for _ in range(2):  # which leaves nothing behind
        found.files() if of == "files" else [*found.scoring.samples(found.sampled)]
        drawn = sample(found, *latents_of(found))
        assert torch.equal(sample(found, *latents_of(found)), drawn)
        assert all(torch.equal(b, before[name]) for name, b in found.generator.named_buffers())
    norm, means = found.averaged.norm, []
    own = copy.deepcopy(found.averaged).train()
    own.norm.register_forward_pre_hook(lambda _, x: means.append(x[0].mean(dim=(0, 2, 3))))
    for z, y in found.scoring.standing():
        own(z, y)
    assert len(means) == scoring.STANDING
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=5e-3)
    assert not torch.allclose(norm.running_mean, found.generator.norm.running_mean, atol=2e-2)
    layers = [m for m in found.averaged.modules() if parametrize.is_parametrized(m)]
    assert len(layers) > 8
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert norm == pytest.approx(1.0, abs=2e-2)


def latents_of(trained: Training) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, trained.model.latent, dtype=torch.float64, generator=generator)
    return z, torch.zeros(4, dtype=torch.int64)


def test_k_decays_each_so_many_generator_steps_where_that_is_asked_for(short_epochs):
    found = training("both", changed(decay_every=2))
    fractions = []
    for until in range(1, 6):
        found.advance(until)
        fractions.append((found.topk.fraction, found.critic_topk.fraction))
    assert fractions == [(f, f) for f in (1.0, 0.8, 0.8, pytest.approx(0.64), pytest.approx(0.64))]


@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision_trains(name):
    found = training(f"top-k+{name}", changed(bf16=True, measure_every=6), dtype=torch.float32)
    begun = weights(found)
    found.advance(1)
    [row] = found.measure()
    assert math.isfinite(row["critic"])
    assert not torch.equal(weights(found), begun)
    assert all(p.dtype == torch.float32 for p in found.generator.parameters())


def test_learning_rates_fall_to_nothing_where_the_paper_lets_them():
    falls, stays = training("wgan-gp"), training("dcgan")
    for until, left in ((1, 1.0), (4, 0.5)):
        for one in (falls, stays):
            one.advance(until)
        rates = [group["lr"] for own in falls.optimizers for group in own.param_groups]
        assert rates == pytest.approx([2e-4 * left] * 2)
        assert {group["lr"] for own in stays.optimizers for group in own.param_groups} == {2e-4}


# --- resuming -----------------------------------------------------------------------------------


def resumed(state: dict, arm: str, settings: Settings = TINY) -> Training:
    content = io.BytesIO()
    torch.save(state, content)
    found = training(arm, settings, dtype=torch.float32)
    found.load_state_dict(torch.load(io.BytesIO(content.getvalue()), weights_only=True))
    return found


@pytest.mark.parametrize("arm", ["top-k+wgan", "both", "top-k+msgan", "top-k+icr-biggan"])
def test_a_resumed_training_ends_bit_identical(arm, short_epochs):
    settings = changed(average=0.9)
    expected = training(arm, settings, dtype=torch.float32)
    stopped = training(arm, settings, dtype=torch.float32)
    expected.advance(6)
    stopped.advance(3)
    found = resumed(stopped.state_dict(), arm, settings)
    assert not torch.equal(weights(found), weights(expected))
    found.advance(6)
    assert torch.equal(weights(found), weights(expected))
    assert found.measure() == expected.measure()


def test_rows_have_the_k_of_the_loss_that_is_gated(short_epochs):
    for arm, k in (("sagan", 8), ("top-k+sagan", 6), ("critic", 6), ("both", 6)):
        found = training(arm)
        found.advance(2)
        assert found.measure()[0]["k"] == k


def test_a_checkpoint_of_something_else_is_refused():
    state = training("dcgan").state_dict()
    for arm, change, text in (
        ("top-k+dcgan", {}, "member"),
        ("dcgan", {"layout": 1}, "layout: 1 in the checkpoint, 2 now"),
        ("dcgan", {"digest": "other"}, "digest: 'other' in the checkpoint"),
        ("dcgan", {"ranks": [{}, {}]}, "ranks: 2 in the checkpoint, 1 now"),
    ):
        with pytest.raises(ResumeMismatch, match=text):
            training(arm).load_state_dict(state | change)


# --- two ranks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    of_thousand_classes(folder / "images")
    multiprocessing.spawn(of_two, (folder, port), nprocs=2)
    return folder


def test_two_ranks_train_log_once_and_resume(two_ranks):
    rows = rows_of(two_ranks / "undisturbed")
    assert [row["kind"] for row in rows] == ["loss", "loss", "score", "sheet", "topk"]
    proof = rows[-1]
    # 4 rows a rank; 5 critic steps an iteration and 2 batches an epoch
    kept = [2 * math.floor(max(0.8 ** (5 * (i + 1) // EPOCH), 0.5) * 4 + 1e-9) for i in range(4)]
    assert (proof["steps"], proof["dropped"]) == (4, sum(8 - k for k in kept))
    assert rows[2]["fake"] == 60
    assert json.loads((two_ranks / "told-0").read_text())[-1] == 4
    assert json.loads((two_ranks / "told-1").read_text()) == []
    both = [two_ranks / name for name in ("undisturbed", "resumed")]
    contents = [(job / "metrics.jsonl").read_bytes() for job in both]
    assert contents[0] == contents[1]
    saved = [load_checkpoint(job / "checkpoint.pt", CPU)["training"] for job in both]
    assert len(saved[0]["ranks"]) == 2
    for name, network in saved[0]["networks"].items():
        for key, value in network.items():
            assert torch.equal(value, saved[1]["networks"][name][key])


def test_two_ranks_resume_within_an_epoch_of_a_thousand_classes_at_the_same_images(two_ranks):
    both = [two_ranks / f"imagenet-{name}" for name in ("undisturbed", "resumed")]
    contents = [(job / "metrics.jsonl").read_bytes() for job in both]
    assert contents[0] == contents[1]
    rows = rows_of(both[0])
    assert rows[0]["epoch"] == rows[-1]["epochs"] == 0  # within the first pass of 250 batches
    saved = [load_checkpoint(job / "checkpoint.pt", CPU)["training"] for job in both]
    critic = saved[0]["networks"]["critic"]
    assert critic["projection.parametrizations.weight.original"].shape[0] == 1_000
    for name, network in saved[0]["networks"].items():
        for key, value in network.items():
            assert torch.equal(value, saved[1]["networks"][name][key])
    seen = [json.loads((two_ranks / f"seen-{rank}").read_text()) for rank in range(2)]
    for rank in range(2):
        assert sorted(seen[rank]) == [*("resumed 3",), *(f"undisturbed {i}" for i in range(4))]
        assert seen[rank]["resumed 3"] == seen[rank]["undisturbed 3"]
    shown = [image for of_rank in seen for i in range(4) for image in of_rank[f"undisturbed {i}"]]
    assert len(shown) == len(set(shown)) == 4 * 8


def test_two_ranks_go_where_one_goes(two_ranks, monkeypatch, short_epochs):
    without_norms(monkeypatch)
    alone = training("sngan", changed(iterations=4), dtype=torch.float32)
    alone.advance(4)
    found = load_checkpoint(two_ranks / "plain/checkpoint.pt", CPU)["training"]
    its = training("sngan", dtype=torch.float32)
    begun = weights(its).clone()
    its.generator.load_state_dict(found["networks"]["generator"])
    its.critic.load_state_dict(found["networks"]["critic"])
    assert apart(weights(its), weights(alone)) < 1e-3 * apart(begun, weights(alone))


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": 9, "accumulation": 2}, "batch: found 9, expected a multiple of 2"),
        ({"score_every": 3}, "score_every: found 3, expected a multiple of measure_every, 2"),
        ({"dataset": "cifar"}, "dataset: found 'cifar', expected one of .*cifar10"),
        ({"width": 0}, "width: found 0"),
        ({"channels": 2}, "channels: found 2, expected 1, 3 or null"),
        ({"features": "resnet"}, "features: found 'resnet', expected one of inception, classifier"),
        ({"bf16": 1}, "bf16: found 1, expected true or false"),
    ],
)
def test_settings_that_cannot_be(changes, text):
    with pytest.raises(ConfigError, match=text):
        changed(**changes)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--set", "batch=2000"], "found 2000, expected at most the 1797 images"),
        (["--set", "channels=3"], "whose images are grey, expected 1"),
        (["--set", "features=inception", "--set", "inception=missing.pth"],
         "missing.pth cannot be read (No such file or directory)"),
        (["--dataset", "cifar10", "--data", "nowhere"], "nowhere"),
        (["--dataset", "folder", "--data", "nowhere"], "found no such folder"),
        (["--set", "graphs=true"], "graphs: found true on cpu, expected false"),
        (["--arms", "top-k+sgan"], "did you mean 'top-k+sngan'?"),
        (["--device", "cuda"], "found no CUDA device"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_before_training(
    arguments, text, tmp_path, capsys, monkeypatch
):
    if "cuda" in arguments:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    else:
        arguments = [*arguments, "--device", "cpu"]
    out = tmp_path / "out"
    assert main(["reproduce", "table3", "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert text in " ".join(error.split())
    assert not out.exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("could not create a memory object"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_what_needs_less(error, monkeypatch):
    def fails(self, *drawn):
        raise error

    found = training("dcgan", changed(accumulation=2))
    monkeypatch.setattr(Training, "_critic_step", fails)
    with pytest.raises(RunError, match="batch 8 on 1 rank and accumulation 2.*accumulation=4"):
        found.advance(1)
    monkeypatch.setattr(
        Training, "_critic_step", lambda *a: (_ for _ in ()).throw(RuntimeError("x"))
    )
    with pytest.raises(RuntimeError, match="^x$"):
        found.advance(1)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "found WORLD_SIZE=2 in the environment without RANK, LOCAL_RANK, MASTER_ADDR"),
        (
            {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "x"},
            "found 1 CUDA devices for local rank 1",
        ),
    ],
)
def test_an_environment_that_is_not_torchruns(environment, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in ({"WORLD_SIZE": "2"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text), ranks.group(torch.device("cuda")):
        pass


def test_a_folder_has_a_classifier_of_its_own(tmp_path, monkeypatch):
    draws = torch.Generator().manual_seed(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            pixels = torch.randint(256, (20, 20, 3), generator=draws, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    settings = changed(dataset="folder", data=str(tmp_path / "data"))
    known = images.prepare(settings, [SIZE], ["sngan"], CPU, lambda *told: None)
    assert known["features"].startswith("classifier of data, 24 images of 2 classes at 16x16")
    found = Training(settings, [Member(SIZE, "top-k+msgan", 0)], CPU)
    found.advance(6)
    score = found.measure()[1]
    assert (score["real"], score["data"], score["nonfinite"]) == (24, known["name"], 0)
    monkeypatch.setattr(batches, "CACHED_BYTES", 100)
    with pytest.raises(ConfigError, match="expected at most .* MiB, on which one is trained"):
        images.prepare(settings, [SIZE], ["sngan"], CPU, lambda *told: None)


def test_other_experiments_do_not_run_under_torchrun(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun: found 2 processes, expected one"):
        reproduce(Request("table1", out=tmp_path / "out", device="cpu"))


# --- the whole ----------------------------------------------------------------------------------


def test_a_run_leaves_rows_sheets_and_a_report(tmp_path, monkeypatch, capsys):
    experiment = EXPERIMENTS["table3"]
    monkeypatch.setitem(EXPERIMENTS, "table3", dataclasses.replace(experiment, cells=(SIZE,)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"iterations": 4, "batch": 600, "samples": 40, "measure_every": 2, "score_every": 2}
    arguments = [f"--set={name}={value}" for name, value in settings.items()]
    out = tmp_path / "out"
    arguments += ["--workers=1", "--device=cpu", f"--out={out}", "--tensorboard"]
    assert main(["reproduce", "table3", "--arms", "dcgan,top-k+dcgan", *arguments]) == 0
    printed, told = capsys.readouterr()
    assert "0 MiB decoded, 0 of 1,797 images\n" in told
    assert "1,797 of 1,797 images\n" in told
    assert "Table 3: images" in printed
    assert "The paper's numbers are left out" in printed
    assert sorted(path.name for path in out.glob("*.png")) == ["samples.png", "table3.png"]
    assert sorted(path.name for path in (out / "jobs/000").glob("*.png")) == [
        "samples-0000002.png", "samples-0000004.png",
    ]  # fmt: skip
    from tensorboard.backend.event_processing import event_accumulator

    board = event_accumulator.EventAccumulator(str(out / "jobs/001/tensorboard")).Reload()
    [logged] = board.Scalars("score/fid/16 top-k+dcgan 0")[-1:]
    [score] = [r["fid"] for r in rows_of(out / "jobs/001") if r["kind"] == "score"][-1:]
    assert (logged.step, logged.value) == (4, pytest.approx(score))
    run = read_run(out)
    assert run.data is not None
    assert run.data["features"].startswith("classifier of digits")
    report = (out / "report.md").read_text()
    assert "| pixels | DCGAN | top-k DCGAN |" in report
