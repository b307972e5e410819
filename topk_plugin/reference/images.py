"""Tables 3 to 5 and the later version's: GANs of images, with and without top-k, by one loop.

Paper, sections 5.2, 5.3 and 6. ``experiments.MODELS`` says what each GAN is, ``experiments.ARMS``
where top-k comes in; this loop trains it: some critic steps, then one generator step. Top-k is one
line in the generator's loss, and for Table 5 one in the critic's. Sizes and lengths are settings.
Under torchrun the batch is divided among the ranks.

All arms of a model have the same initial weights, data order and noise, whatever the number of
ranks: each rank draws the whole batch's noise and takes its rows. BatchNorm, k, and MSGAN's ratio
of means go by what a device sees at a time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from topk_plugin import TopK
from topk_plugin.errors import ConfigError, ResumeMismatch, RunError
from topk_plugin.reference.data.batches import CACHED_BYTES, FOLDER, Cached, Source, source
from topk_plugin.reference.data.named import load_images
from topk_plugin.reference.fid.classifier_features import classifier
from topk_plugin.reference.fid.features import Features, to_pixels
from topk_plugin.reference.fid.frechet import Statistics
from topk_plugin.reference.fid.inception_features import inception
from topk_plugin.reference.fid.scores import generated_statistics, reference_statistics, score
from topk_plugin.reference.image_models import (
    arm_of,
    averaged_copy,
    networks,
    optimizer,
    settle_,
)
from topk_plugin.reference.image_settings import Settings
from topk_plugin.reference.losses import LOSSES
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.regularizers import (
    clip_weights_,
    consistency,
    gradient_penalty,
    latent_insensitivity,
    mode_seeking,
    shifted_and_flipped,
)
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.records import Member, Row, Tell

DISTRIBUTED = True
"""Ranks that torchrun started train one model together."""

EVALUATED = 250  # samples at once
SHOWN = 8  # rows and columns of a sample sheet
NO_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED",
    "could not create a memory",
)  # fmt: skip
"""Signs of too little memory in errors of CUDA's, the CPU's and oneDNN's."""

STANDING = 16
"""Batches over which BatchNorm's statistics of averaged weights are taken."""

LAYOUT = 2
"""Of a checkpoint."""

EAGER = 100
"""Iterations before CUDA graphs are captured: as many as vote on the scores' direction."""


# --- before training ----------------------------------------------------------------------------


def prepare(
    settings: Settings, cells: Sequence[int], arms: Sequence[str], device: torch.device, tell: Tell
) -> dict[str, Any]:
    """Checks data, features and sizes before any training; fills the caches of both.

    Args:
        cells: the size of images, in pixels.
        arms: what is to be trained.
        device: where features are computed.
        tell: told of the real images' statistics, unless these are known.

    Raises:
        ConfigError: no data, too few for a batch, no weights of the feature network or others,
            or a size that a network cannot have.
    """

    [size] = cells

    def at_first() -> dict[str, Any]:
        if settings.graphs and device.type != "cuda":
            raise ConfigError(
                f"graphs: found true on {device.type}, expected false: CUDA graphs need a GPU"
            )
        images = _source(settings, size, 0, device, alone=True)
        with torch.device("meta"):
            for arm in arms:
                networks(arm_of(arm)[1], settings, size, images.channels, images.classes)
        tell(f"{images.name}: {images.nbytes / 2**20:,.0f} MiB decoded", 0, images.count)
        features = features_of(settings, images, device)
        what = f"features of {images.name}"
        known = reference_statistics(
            images, features, tell=lambda done, total: tell(what, done, total)
        )
        return {
            "name": images.name,
            "images": images.count,
            "channels": images.channels,
            "classes": images.classes,
            "digest": images.digest,
            "features": features.name,
            "features_digest": features.digest,
            "real": known.count,
        }

    return ranks.at_first(at_first)


def _source(
    settings: Settings, size: int, seed: int, device: torch.device, alone: bool = False
) -> Source:
    return source(
        settings.dataset, settings.data, settings.download,
        size=size, batch=settings.batch, seed=seed, device=device,
        rank=0 if alone else ranks.rank(), world=1 if alone else ranks.world(),
        channels=settings.channels, workers=settings.decoders,
    )  # fmt: skip


def features_of(settings: Settings, images: Source, device: torch.device) -> Features:
    """The network whose features are compared.

    Args:
        images: the real ones.

    Raises:
        ConfigError: its weights are missing or others, or a folder is too large for a classifier.
    """
    if settings.features == "inception":
        return inception(settings.inception, device, settings.inception_sha256)
    if settings.dataset != FOLDER:  # at their own size: the metric is the same at any other
        return classifier(load_images(settings.dataset, settings.data, part="train"), device)
    if isinstance(images, Cached):
        return classifier(images.images(), device)
    raise ConfigError(
        f"features: found 'classifier' for {images.name}, {images.nbytes >> 20:,} MiB decoded, "
        f"expected at most {CACHED_BYTES >> 20:,} MiB, on which one is trained; choose the "
        "features of Inception: --set features=inception"
    )


# --- training -----------------------------------------------------------------------------------


def stacks(
    settings: Settings, members: Sequence[Member], device: torch.device, workers: int
) -> list[list[Member]]:
    """Which members one job trains together: each is one of its own."""
    return [[member] for member in members]


class Noise(NamedTuple):
    """What one step draws, this rank's rows of the batch."""

    z: Tensor  # (B, L)
    other: Tensor  # (B, L), second latents: a mode-seeking model's, or near the first ones
    y: Tensor  # (B,) int64, labels of what is generated
    mix: Tensor  # (B,) in [0, 1], how far between real and generated the penalty looks
    moves: Tensor  # (B, 6) in [0, 1), how real and generated images are augmented; or (B, 0)

    def part(self, number: int, parts: int) -> Noise:
        """One of equal parts of the rows."""
        return Noise(*(tensor.chunk(parts)[number] for tensor in self))


class Captured:
    """A CUDA graph of a step: the same kernels again, with other numbers in its inputs."""

    def __init__(self, step: Callable[..., None], inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step(*self.inputs)

    def __call__(self, *inputs: Tensor) -> None:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()


class Training:
    """One member in training: cell is the image size, arm a model's name with or without top-k.

    Args:
        dtype: of weights and images.

    Raises:
        ConfigError: an unknown arm, or data that are missing or do not fit.
    """

    def __init__(
        self,
        settings: Settings,
        members: Sequence[Member],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        [self.member] = members
        arm, self.model = arm_of(self.member.arm)
        self.settings, self.device, self.dtype = settings, device, dtype
        self.iterations, self.iteration = settings.iterations or self.model.iterations, 0
        self.images = _source(settings, self.member.cell, self.member.seed, device)
        gamma = settings.gamma if arm.gamma is None else arm.gamma
        nu = settings.nu if arm.nu is None else arm.nu
        self.topk, self.critic_topk = (
            TopK(enabled=whose in arm.topk, gamma=gamma, nu=nu, direction=direction)
            for whose, direction in (("generator", "auto"), ("critic", "high"))
        )
        self.gated = {"generator": self.topk, "critic": self.critic_topk}
        self.shown = (*arm.topk, "generator")[0]  # whose k is in the rows of losses
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global one
            torch.default_generator.manual_seed(self._stream("weights").initial_seed())
            pair = networks(
                self.model, settings, self.member.cell, self.images.channels, self.images.classes
            )
        self.generator, self.critic = (
            network.to(device, dtype).to(memory_format=torch.channels_last) for network in pair
        )
        self.average = self.model.average if settings.average is None else settings.average
        self.averaged = averaged_copy(self.generator) if self.average else None
        rates = self.model.learning_rate, self.model.critic_learning_rate
        self.optimizers = [
            optimizer(self.model, network, rate, settings.graphs)
            for network, rate in zip((self.generator, self.critic), rates, strict=True)
        ]
        if settings.compile:
            self.generator.compile()
            if not self.model.penalty:  # which a compiled network cannot be differentiated twice
                self.critic.compile()
        # real and generated in one call, which is faster, where no layer couples the rows
        self.joint = not any(isinstance(m, nn.BatchNorm2d) for m in self.critic.modules())
        self.noise = torch.Generator(device)
        # critic's loss, generator's loss, score of real, score of generated; since measure_every
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.captured: dict[str, Captured] = {}
        if settings.graphs:
            self.stream = torch.cuda.Stream()
        self.begun = 0  # iteration at which this process began
        # before a resume
        self.counted = {whose: {"rows": 0, "dropped": 0, "nonfinite": 0} for whose in self.gated}

    def _stream(self, name: str, *key: int) -> torch.Generator:
        """On the CPU, so that a GPU sees the same data order and initial weights."""
        return stream(name, self.member.cell, self.member.seed, *key, device=torch.device("cpu"))

    def advance(self, until: int) -> None:
        """Trains up to that iteration, a generator step, at most to the last one.

        Raises:
            RunError: the device has too little memory.
        """
        with self._memory():
            while self.iteration < min(until, self.iterations):
                if self.iteration % self.settings.measure_every == 0:
                    self.sums.zero_()
                self._set_learning_rates()
                steps = self.model.critic_steps
                for i in range(steps):
                    step = self.iteration * steps + i
                    real, y = self.images.at(step)
                    real, noise = real.to(self.dtype), self._draw(i)
                    if self.model.dequantised:
                        real = self._dequantised(real)
                    self._run(self._critic_step, self.critic_topk, real, y, *noise)
                    if self.settings.decay_every is None and (step + 1) % self.images.length == 0:
                        self._decay()
                self._run(self._generator_step, self.topk, *self._draw(steps))
                self.iteration += 1
                if self.averaged is not None:
                    self._follow(self.averaged)
                if self.settings.decay_every and self.iteration % self.settings.decay_every == 0:
                    self._decay()

    def _decay(self) -> None:
        for own in self.gated.values():
            own.end_epoch()

    def _follow(self, averaged: nn.Module) -> None:
        """The averaged weights follow the generator's, from some iteration on."""
        means: list[Tensor] = [*averaged.parameters()]
        latest: list[Tensor] = [*self.generator.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(means, latest, 1 - self.averages)

    @property
    def averages(self) -> float:
        """Decay of the averaged weights; 0 while they are the latest."""
        return self.average if self.iteration > self.model.average_from else 0.0

    def _set_learning_rates(self) -> None:
        if self.model.decays:
            left = 1 - self.iteration / self.iterations
            rates = self.model.learning_rate, self.model.critic_learning_rate
            for own, rate in zip(self.optimizers, rates, strict=True):
                for group in own.param_groups:
                    if isinstance(group["lr"], Tensor):
                        group["lr"].fill_(rate * left)
                    else:
                        group["lr"] = rate * left

    def _draw(self, step: int) -> Noise:
        """Draws the whole batch's noise and takes this rank's rows."""
        # seeded by iteration, so that a resumed run needs no state of it
        draws = self.noise.manual_seed(self._stream("noise", self.iteration, step).initial_seed())
        rows = self.settings.batch
        z, other = self._latents((2, rows), draws)
        y = torch.randint(self.images.classes, (rows,), generator=draws, device=draws.device)
        mix = torch.rand(rows, generator=draws, device=draws.device).to(self.dtype)
        moves = torch.rand(
            rows, 6 if self.model.balanced else 0, generator=draws, device=draws.device
        )
        return Noise(z, other, y, mix, moves).part(ranks.rank(), ranks.world())

    def _latents(self, rows: tuple[int, ...], draws: torch.Generator) -> Tensor:
        """(*rows, L) of the model's prior."""
        shape = (*rows, self.model.latent)
        if self.model.prior == "uniform":
            z = torch.rand(shape, generator=draws, device=draws.device) * 2 - 1
        else:
            z = torch.randn(shape, generator=draws, device=draws.device)
        return z.to(self.device, self.dtype)

    def _dequantised(self, real: Tensor) -> Tensor:
        """This rank's images (b, C, H, W), whose 256 grey levels become intervals of [-1, 1)."""
        shape = (self.settings.batch, *real.shape[1:])  # of all ranks, as all noise
        share = torch.rand(shape, generator=self.noise, device=self.device)
        own = share.chunk(ranks.world())[ranks.rank()].to(real)
        return ((real + 1) * 127.5 + own) / 128 - 1

    def _run(self, step: Callable[..., None], topk: TopK, *inputs: Tensor) -> None:
        """A step with that top-k in its loss, as a CUDA graph where that was asked for."""
        self._stepped(step, topk, *inputs)
        if topk.config.enabled:
            topk.step()  # a replayed graph runs no Python, so nothing else counts it

    def _stepped(self, step: Callable[..., None], topk: TopK, *inputs: Tensor) -> None:
        if not self.settings.graphs:
            step(*inputs)
            return
        if self.iteration - self.begun < 3 or self.iteration < EAGER:
            # on a stream of its own, so that nothing that a graph needs belongs to the usual one
            own, usual = self.stream, torch.cuda.current_stream()
            own.wait_stream(usual)
            with torch.cuda.stream(own):
                step(*inputs)
            usual.wait_stream(own)
            return
        if step.__name__ not in self.captured:
            counted = topk.epoch, topk.steps
            self.captured[step.__name__] = Captured(step, inputs)
            if topk.config.enabled:
                topk.step()  # to capture is not to train
                topk.begin_at(*counted)
        self.captured[step.__name__](*inputs)

    def _critic_step(self, real: Tensor, y: Tensor, *drawn: Tensor) -> None:
        parts, noise = self.settings.accumulation, Noise(*drawn)
        losses = (
            self._critic_loss(own, labels, noise.part(i, parts)) / parts
            for i, (own, labels) in enumerate(zip(real.chunk(parts), y.chunk(parts), strict=True))
        )
        self._update(1, losses)
        if self.model.clip:
            clip_weights_(self.critic, self.model.clip)

    def _critic_loss(self, real: Tensor, y: Tensor, noise: Noise) -> Tensor:
        model = self.model
        labels = y if model.mode_seeking else noise.y
        with torch.no_grad(), self._precision():
            fakes = self._fakes(noise, labels)
        scored = fakes if model.mode_seeking else fakes[:1]  # the others are to be scored alike
        loss, told = real.new_zeros(()), self.sums.new_zeros(2)
        for fake in scored:
            pairs = [(real, y), (fake, labels)]
            if model.balanced:
                moves = noise.moves.chunk(2, dim=1)
                pairs += [(shifted_and_flipped(x, moves[i]), of) for i, (x, of) in enumerate(pairs)]
            if model.latent_consistency:
                pairs.append((fakes[1], labels))
            with self._precision():
                real_scores, fake_scores, *others = self._scores_of(pairs)
            gated = self.critic_topk(fake_scores)
            loss = loss + LOSSES[model.loss].critic_loss(real_scores, gated)
            if model.balanced:
                for its, moved in zip((real_scores, fake_scores), others, strict=False):
                    loss = loss + model.balanced * consistency(its, moved)
            if model.latent_consistency:
                loss = loss + model.latent_consistency * consistency(fake_scores, others[-1])
            if model.penalty:
                with self._precision():
                    penalty = gradient_penalty(self._scores, real, fake, labels, noise.mix)
                loss = loss + model.penalty * penalty
            told += torch.stack([real_scores.mean(), fake_scores.mean()]).detach() / len(scored)
        weight = 1 / (self.settings.accumulation * model.critic_steps)
        self.sums[0] += weight * loss.detach()
        self.sums[2:] += weight * told
        return loss

    def _scores_of(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        """Scores (B,) of images and labels, each pair (B, C, H, W) and (B,)."""
        if not self.joint:
            return [self._scores(*pair) for pair in pairs]
        images, labels = zip(*pairs, strict=True)
        return self._scores(torch.cat(images), torch.cat(labels)).chunk(len(pairs))

    def _generator_step(self, *drawn: Tensor) -> None:
        parts, noise = self.settings.accumulation, Noise(*drawn)
        self.critic.requires_grad_(False)  # its weights' gradients are not needed
        losses = (self._generator_loss(noise.part(i, parts)) / parts for i in range(parts))
        self._update(0, losses)
        self.critic.requires_grad_(True)

    def _generator_loss(self, noise: Noise) -> Tensor:
        model = self.model
        with self._precision():
            fakes = self._fakes(noise, noise.y)
            scored = fakes if model.mode_seeking else fakes[:1]
            scores = [self._scores(fake, noise.y) for fake in scored]
        loss = scores[0].new_zeros(())
        for own in scores:
            loss = loss + LOSSES[model.loss].generator_loss(self.topk(own))
        one, *second = (fake.to(self.dtype) for fake in fakes)
        if model.mode_seeking:
            sought = mode_seeking(one, second[0], noise.z, noise.other)
            loss = loss + model.mode_seeking * sought
        if model.latent_diversity:
            loss = loss + model.latent_diversity * latent_insensitivity(one, second[0])
        self.sums[1] += loss.detach().double() / self.settings.accumulation
        return loss

    def _fakes(self, noise: Noise, labels: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) of the latents; where a model needs them, of the second ones too."""
        if self.model.mode_seeking:
            both = torch.cat([noise.z, noise.other]), torch.cat([labels, labels])
            return tuple(self.generator(*both).chunk(2))
        latents = [noise.z]
        if self.model.latent_noise:  # a call of its own: BatchNorm sees a batch as without it
            latents.append(noise.z + self.model.latent_noise * noise.other)
        return tuple(self.generator(z, labels) for z in latents)

    def _scores(self, x: Tensor, y: Tensor | None) -> Tensor:
        scores: Tensor = self.critic(x, y)
        return scores.to(self.dtype)  # which is not that of mixed precision

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def _update(self, which: int, losses: Iterable[Tensor]) -> None:
        """A step of the generator's (0) or the critic's (1) optimizer down the sum of losses."""
        own = [p for group in self.optimizers[which].param_groups for p in group["params"]]
        self.optimizers[which].zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward(inputs=own)
        ranks.average_([p.grad for p in own])
        self.optimizers[which].step()

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Too little memory as a RunError that says what would need less."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            text = str(error) or type(error).__name__
            if not (
                isinstance(error, torch.OutOfMemoryError | MemoryError)
                or any(sign in text for sign in NO_MEMORY)
            ):
                raise
            batch, parts = self.settings.batch, self.settings.accumulation
            raise RunError(
                f"{self.device.type}: out of memory with batch {batch} on {ranks.world()} "
                f"rank{'s' * (ranks.world() != 1)} and accumulation {parts} "
                f"({text.splitlines()[0][:200]}). Give --set accumulation={2 * parts}, which "
                f"computes the batch in {2 * parts} parts, or a smaller --set batch; and another "
                "--out, since the settings of a run stay"
            ) from error

    # --- what a run keeps -----------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, L) and labels (B,), by running statistics.

        Of the averaged weights as :meth:`_settle` left them, where there are such.
        """
        network = self.averaged if self.averaged is not None and self.averages else self.generator
        trains = network.training
        network.eval()
        with self._precision():
            images: Tensor = network(z, y)
        network.train(trains)
        return images

    def _settle(self) -> None:
        """What comes before samples: statistics that are the same on all ranks."""
        ranks.copy_first_([*self.generator.buffers()])
        if self.averaged is None or not self.averages:
            return
        with self._precision():
            settle_(self.averaged, self.generator, self._standing())
        ranks.copy_first_([*self.averaged.buffers()])

    def _standing(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents and labels of some batches, the same at every call."""
        rows = self.settings.batch // (self.settings.accumulation * ranks.world())
        for number in range(STANDING):
            draws = self._stream("standing", number)
            y = torch.randint(self.images.classes, (rows,), generator=draws).to(self.device)
            yield self._latents((rows,), draws), y

    def _samples(self) -> Iterator[Tensor]:
        """This rank's share of ``samples`` images, of the same latents at every call."""
        self._settle()
        for number, first in enumerate(range(0, self.settings.samples, EVALUATED)):
            if number % ranks.world() == ranks.rank():
                count = min(EVALUATED, self.settings.samples - first)
                y = torch.arange(first, first + count, device=self.device) % self.images.classes
                yield self.sample(self._latents((count,), self._stream("samples", number)), y)

    def measure(self) -> list[Row]:
        """Mean losses and scores since the last measurement; at times the Frechet distance.

        At the end also top-k's proof. What is not finite is None in a row.

        Raises:
            RunError: the device has too little memory.
        """
        with self._memory():
            return self._rows()

    def _rows(self) -> list[Row]:
        window = self.iteration % self.settings.measure_every or self.settings.measure_every
        window = min(window, self.iteration)
        means = self.sums / max(window, 1)
        ranks.average_([means])
        names = ("critic", "generator", "real_score", "fake_score")
        row = self._row("loss") | {"epoch": self.epoch, "k": self._k(self.shown)}
        rows = [row | {n: finite(v) for n, v in zip(names, means.tolist(), strict=True)}]
        at_end = self.iteration == self.iterations
        if at_end or self.iteration % self.settings.score_every == 0:
            rows.append(self._row("score") | self._score())
        if at_end:
            rows.append(self._row("sheet") | {"file": self._sheet()})
            for whose, own in self.gated.items():
                if own.config.enabled:
                    rows.append(self._row("topk") | {"of": whose} | self._proof(whose))
        return rows

    @property
    def epoch(self) -> int:
        """Passes over the real data that have ended."""
        return self.iteration * self.model.critic_steps // self.images.length

    def _k(self, whose: str) -> int:
        """Of the rows that one device ranks at a time."""
        rows = self.settings.batch // (self.settings.accumulation * ranks.world())
        own = self.gated[whose]
        return own.k(rows) if own.config.enabled else rows

    @cached_property
    def features(self) -> Features:
        """The network whose features are compared; its weights were checked by :func:`prepare`."""
        return features_of(self.settings, self.images, self.device)

    def _score(self) -> Row:
        features = self.features
        known = ranks.at_first(lambda: reference_statistics(self.images, features).state_dict())
        real = Statistics.from_state(known, self.device)
        of_ranks = ranks.gathered(generated_statistics(self._samples(), features).state_dict())
        generated = Statistics(features.dimension, self.device)
        for state in of_ranks:
            generated.merge(Statistics.from_state(state, self.device))
        row = score(self.images, real, generated, features)._asdict()
        named = {"score": row.pop("metric"), "fid": row.pop("value")}
        return named | row | {"average": self.averages}

    def files(self) -> dict[str, bytes]:
        """A sheet of samples, of the same latents each time; a conditional model's by class."""
        self._settle()
        count = SHOWN * SHOWN
        columns = torch.arange(count, device=self.device) % SHOWN
        z = self._latents((count,), self._stream("sheet"))
        images = self.sample(z, columns % self.images.classes)
        return {self._sheet(): png(to_pixels(images), SHOWN)}

    def _sheet(self) -> str:
        return f"samples-{self.iteration:07d}.png"

    def _row(self, kind: str) -> Row:
        return self.member._asdict() | {"iteration": self.iteration, "kind": kind}

    def _proof(self, whose: str) -> Row:
        report = self.gated[whose].report()
        of_ranks = ranks.gathered(self._counts(whose))
        return {name: sum(counts[name] for counts in of_ranks) for name in of_ranks[0]} | {
            "steps": report.steps,
            "epochs": report.epochs,
            "direction": report.direction,
            "last_k": self._k(whose),
        }

    def _counts(self, whose: str) -> dict[str, int]:
        """What top-k counted, of this rank's rows, also before a resume."""
        report = self.gated[whose].report()
        return {name: n + getattr(report, name) for name, n in self.counted[whose].items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; data are drawn by iteration."""
        # BatchNorm's running statistics are the first rank's, here as in every sample
        return {
            "layout": LAYOUT,
            "member": tuple(self.member),
            "digest": self.images.digest,
            "iteration": self.iteration,
            "networks": {name: n.state_dict() for name, n in self._networks().items()},
            "optimizers": [own.state_dict() for own in self.optimizers],
            "ranks": ranks.gathered(
                {
                    "sums": self.sums.cpu().clone(),
                    "topk": {whose: own.state_dict() for whose, own in self.gated.items()},
                    "counted": {whose: self._counts(whose) for whose in self.gated},
                }
            ),
        }

    def _networks(self) -> dict[str, nn.Module]:
        pair = {"generator": self.generator, "critic": self.critic}
        return pair if self.averaged is None else {**pair, "averaged": self.averaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same settings.

        Raises:
            ResumeMismatch: it is of another member, of other data or another number of ranks, or
                top-k was set otherwise.
        """
        for name, its, mine in (
            ("layout", state.get("layout", 1), LAYOUT),
            ("member", state["member"], tuple(self.member)),
            ("digest", state["digest"], self.images.digest),
            ("ranks", len(state["ranks"]), ranks.world()),
        ):
            if its != mine:
                raise ResumeMismatch(
                    f"{name}: {its!r} in the checkpoint, {mine!r} now. Resume with the settings "
                    "and the data of the checkpoint, or start anew without it."
                )
        self.iteration = self.begun = state["iteration"]
        self.captured = {}  # an optimizer's state is replaced, not filled
        for name, network in self._networks().items():
            network.load_state_dict(state["networks"][name])
        for own, its in zip(self.optimizers, state["optimizers"], strict=True):
            own.load_state_dict(its)
            for group in own.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"] = group["lr"].to(self.device)
        of_rank = state["ranks"][ranks.rank()]
        self.sums.copy_(of_rank["sums"])
        for whose, topk in self.gated.items():
            topk.load_state_dict(of_rank["topk"][whose])
        self.counted = {whose: dict(counts) for whose, counts in of_rank["counted"].items()}


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def png(images: Tensor, columns: int) -> bytes:
    """Images (B, C, H, W), uint8, side by side as a PNG."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    content = io.BytesIO()
    to_pil_image(make_grid(images.cpu(), columns, padding=1)).save(content, "PNG")
    return content.getvalue()
