"""The trainer of images against a plain loop."""

import dataclasses
import math

import pytest
import torch
from image_runs import EPOCH, SIZE, changed, without_norms
from image_trainings import apart, at_the_end, sample, training, weights
from torch.nn import functional

from topk_plugin.errors import RunError
from topk_plugin.reference.images import Training
from topk_plugin.reference.models import ARMS, MODELS, Arm


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
