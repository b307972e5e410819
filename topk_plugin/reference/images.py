"""Table 3: six GANs of images, each with and without top-k, by one loop.

Paper, section 5.2. ``experiments.MODELS`` says what each GAN is; this loop trains it: some critic
steps, then one generator step. Top-k is one line in the generator's loss. Sizes and lengths are
settings. Under torchrun the batch is divided among the ranks.

Both arms of a model have the same initial weights, data order and noise, whatever the number of
ranks: each rank draws the whole batch's noise and takes its rows. BatchNorm, k, and MSGAN's ratio
of means go by what a device sees at a time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from topk_plugin import TopK
from topk_plugin.errors import ConfigError, ResumeMismatch, RunError, unknown_name
from topk_plugin.reference import fid, ranks
from topk_plugin.reference.anomaly import average_of
from topk_plugin.reference.data import DATASETS, load_images
from topk_plugin.reference.experiments import MODELS, Model
from topk_plugin.reference.losses import LOSSES
from topk_plugin.reference.mixture import is_number, stream
from topk_plugin.reference.networks.dcgan import DCGANCritic, DCGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator
from topk_plugin.reference.regularizers import clip_weights_, gradient_penalty, mode_seeking
from topk_plugin.reference.runs import Member, Row, Tell
from topk_plugin.reference.sources import CACHED_BYTES, FOLDER, Cached, Source, source

DISTRIBUTED = True
"""Ranks that torchrun started train one model together."""

KNOWN = (*DATASETS, FOLDER)
FEATURES = ("inception", "classifier")
EVALUATED = 250  # samples at once
SHOWN = 8  # rows and columns of a sample sheet
NO_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED",
    "could not create a memory",
)  # fmt: skip
"""Signs of too little memory in errors of CUDA's, the CPU's and oneDNN's."""

EAGER = 100
"""Iterations before CUDA graphs are captured: as many as vote on the scores' direction."""


@dataclass(frozen=True)
class Settings:
    """The experiment; what belongs to a model is in ``experiments.MODELS``.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    dataset: str = "cifar10"  # or "folder", "digits", "mnist", "fashion-mnist"
    data: str | None = None
    download: bool = False
    channels: int | None = None  # 1 or 3; None: as the images are
    batch: int = 128  # over all ranks
    accumulation: int = 1  # parts of a rank's batch that are computed after each other
    gamma: float = 0.99
    nu: float = 0.5
    # open
    iterations: int | None = None  # generator steps; None: those of the model
    width: float = 1.0  # of all layers, relative to the model's
    samples: int = 50_000  # whose statistics are compared with those of all training images
    features: str = "inception"  # or "classifier", which is trained on the data set
    inception: str | None = None  # path of its weights; None: torch hub's cache
    inception_sha256: str = fid.PUBLISHED  # how that file's digest begins
    average: float = 0.0  # decay of the generator's averaged weights; 0: no average
    bf16: bool = False  # mixed precision
    compile: bool = False
    graphs: bool = False  # CUDA graphs
    decoders: int | None = None  # processes that decode a folder's images; None: one a core
    measure_every: int = 1_000  # generator steps
    score_every: int = 10_000

    def __post_init__(self) -> None:
        for names, fits, expected in RULES:
            for name in names:
                if not fits(value := getattr(self, name)):
                    raise ConfigError(f"{name}: found {value!r}, expected {expected}")
        parts = self.accumulation * ranks.launched()
        if self.batch % parts:
            raise ConfigError(
                f"batch: found {self.batch}, expected a multiple of {parts}: accumulation "
                f"{self.accumulation} on {ranks.launched()} ranks"
            )
        if self.score_every % self.measure_every:
            raise ConfigError(
                f"score_every: found {self.score_every}, expected a multiple of measure_every, "
                f"{self.measure_every}"
            )


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


RULES = [
    (["dataset"], lambda v: v in KNOWN, f"one of {', '.join(KNOWN)}"),
    (["inception_sha256"], lambda v: isinstance(v, str), "hexadecimal digits"),
    (["data", "inception"], lambda v: v is None or isinstance(v, str), "a path"),
    (
        ["download", "bf16", "compile", "graphs"],
        lambda v: isinstance(v, bool), "true or false",
    ),
    (["channels"], lambda v: v in (None, 1, 3), "1, 3 or null"),
    (
        ["accumulation", "measure_every", "score_every"],
        lambda v: _whole(v, 1), "a whole number, at least 1",
    ),
    (["batch", "samples"], lambda v: _whole(v, 2), "a whole number, at least 2"),
    (
        ["iterations", "decoders"],
        lambda v: v is None or _whole(v, 1), "a whole number, at least 1, or null",
    ),
    (["gamma", "nu", "width"], lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
    (["average"], lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    (["features"], lambda v: v in FEATURES, f"one of {', '.join(FEATURES)}"),
]  # fmt: skip


# --- what is trained ----------------------------------------------------------------------------


def model_of(arm: str) -> tuple[Model, bool]:
    """A model, and whether top-k is on.

    Raises:
        ConfigError: no arm of Table 3.
    """
    name = arm.removeprefix("top-k+")
    if name not in MODELS:
        raise unknown_name(f"arm {arm}", "model", name, MODELS)
    return MODELS[name], name != arm


def networks(
    model: Model, settings: Settings, size: int, channels: int, classes: int
) -> tuple[nn.Module, nn.Module]:
    """Generator (z (B, L), y (B,)) -> images (B, C, H, W) in [-1, 1], and critic -> scores (B,)."""
    labels = classes if model.conditional else 0
    wide = [max(1, round(settings.width * w)) for w in (model.generator_width, model.critic_width)]
    if model.family == "dcgan":
        return (
            DCGANGenerator(size, channels, model.latent, wide[0], labels, model.bias),
            DCGANCritic(size, channels, wide[1], labels, model.bias),
        )
    both, one = model.spectral == "both", bool(model.spectral)
    return (
        ResNetGenerator(size, channels, model.latent, wide[0], labels, both, model.attention),
        ResNetCritic(size, channels, wide[1], labels, one, model.attention),
    )


def optimizer(model: Model, network: nn.Module, learning_rate: float, graphs: bool) -> Optimizer:
    """As the model's paper has it; in a CUDA graph the learning rate is a tensor."""
    on_gpu = graphs and next(network.parameters()).is_cuda
    # on the device: a graph keeps what a number or a tensor on the CPU was when it was captured
    rate: Any = torch.tensor(learning_rate, device="cuda") if on_gpu else learning_rate
    if model.optimizer == "rmsprop":
        return RMSprop(network.parameters(), rate, foreach=True, capturable=on_gpu)
    return Adam(
        network.parameters(), rate, betas=model.betas, weight_decay=model.weight_decay,
        fused=True, capturable=on_gpu,
    )  # fmt: skip


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
                networks(model_of(arm)[0], settings, size, images.channels, images.classes)
        tell(f"{images.name}: {images.nbytes / 2**20:,.0f} MiB decoded", 0, images.count)
        features = features_of(settings, images, device)
        what = f"features of {images.name}"
        known = fid.reference_statistics(
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


def features_of(settings: Settings, images: Source, device: torch.device) -> fid.Features:
    """The network whose features are compared.

    Args:
        images: the real ones.

    Raises:
        ConfigError: its weights are missing or others, or a folder is too large for a classifier.
    """
    if settings.features == "inception":
        return fid.inception(settings.inception, device, settings.inception_sha256)
    if settings.dataset != FOLDER:  # at their own size: the metric is the same at any other
        return fid.classifier(load_images(settings.dataset, settings.data, part="train"), device)
    if isinstance(images, Cached):
        return fid.classifier(images.images(), device)
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
    other: Tensor  # (B, L), the second latents of a mode-seeking model
    y: Tensor  # (B,) int64, labels of what is generated
    mix: Tensor  # (B,) in [0, 1], how far between real and generated the penalty looks

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
        self.model, gated = model_of(self.member.arm)
        self.settings, self.device, self.dtype = settings, device, dtype
        self.iterations, self.iteration = settings.iterations or self.model.iterations, 0
        self.images = _source(settings, self.member.cell, self.member.seed, device)
        self.topk = TopK(enabled=gated, gamma=settings.gamma, nu=settings.nu)
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global one
            torch.default_generator.manual_seed(self._stream("weights").initial_seed())
            pair = networks(
                self.model, settings, self.member.cell, self.images.channels, self.images.classes
            )
        self.generator, self.critic = (
            network.to(device, dtype).to(memory_format=torch.channels_last) for network in pair
        )
        self.averaged = average_of(self.generator) if settings.average else self.generator
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
        self.counted = {"rows": 0, "dropped": 0, "nonfinite": 0}  # before a resume

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
                    self._run(self._critic_step, real, y, *noise)
                    if (step + 1) % self.images.length == 0:
                        self.topk.end_epoch()
                self._run(self._generator_step, *self._draw(steps))
                self.iteration += 1
                if self.topk.config.enabled:
                    self.topk.step()  # a replayed graph runs no Python, so nothing else counts it

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
        return Noise(z, other, y, mix).part(ranks.rank(), ranks.world())

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

    def _run(self, step: Callable[..., None], *inputs: Tensor) -> None:
        """A step, as a CUDA graph where that was asked for."""
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
            counted = self.topk.epoch, self.topk.steps
            self.captured[step.__name__] = Captured(step, inputs)
            if self.topk.config.enabled and step == self._generator_step:
                self.topk.step()  # to capture is not to train
                self.topk.begin_at(*counted)
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
        labels = y if self.model.mode_seeking else noise.y
        with torch.no_grad(), self._precision():
            fakes = self._fakes(noise, labels)
        loss, told = real.new_zeros(()), self.sums.new_zeros(2)
        for fake in fakes:
            with self._precision():
                if self.joint:
                    both = torch.cat([real, fake]), torch.cat([y, labels])
                    real_scores, fake_scores = self._scores(*both).chunk(2)
                else:
                    real_scores = self._scores(real, y)
                    fake_scores = self._scores(fake, labels)
            loss = loss + LOSSES[self.model.loss].critic_loss(real_scores, fake_scores)
            if self.model.penalty:
                with self._precision():
                    penalty = gradient_penalty(self._scores, real, fake, labels, noise.mix)
                loss = loss + self.model.penalty * penalty
            told += torch.stack([real_scores.mean(), fake_scores.mean()]).detach() / len(fakes)
        weight = 1 / (self.settings.accumulation * self.model.critic_steps)
        self.sums[0] += weight * loss.detach()
        self.sums[2:] += weight * told
        return loss

    def _generator_step(self, *drawn: Tensor) -> None:
        parts, noise = self.settings.accumulation, Noise(*drawn)
        self.critic.requires_grad_(False)  # its weights' gradients are not needed
        losses = (self._generator_loss(noise.part(i, parts)) / parts for i in range(parts))
        self._update(0, losses)
        self.critic.requires_grad_(True)
        if self.settings.average:
            means: list[Tensor] = [*self.averaged.parameters()]
            latest: list[Tensor] = [*self.generator.parameters()]
            with torch.no_grad():
                torch._foreach_lerp_(means, latest, 1 - self.settings.average)

    def _generator_loss(self, noise: Noise) -> Tensor:
        with self._precision():
            fakes = self._fakes(noise, noise.y)
            scores = [self._scores(fake, noise.y) for fake in fakes]
        loss = scores[0].new_zeros(())
        for own in scores:
            loss = loss + LOSSES[self.model.loss].generator_loss(self.topk(own))
        if self.model.mode_seeking:
            one, other = (fake.to(self.dtype) for fake in fakes)
            sought = mode_seeking(one, other, noise.z, noise.other)
            loss = loss + self.model.mode_seeking * sought
        self.sums[1] += loss.detach().double() / self.settings.accumulation
        return loss

    def _fakes(self, noise: Noise, labels: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) of the latents; a mode-seeking model's also of the other latents."""
        if not self.model.mode_seeking:
            return (self.generator(noise.z, labels),)
        both = self.generator(torch.cat([noise.z, noise.other]), torch.cat([labels, labels]))
        return both.chunk(2)

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
        """Images (B, C, H, W) of latents (B, L) and labels (B,), by running statistics."""
        trains = self.averaged.training
        self.averaged.eval()
        with self._precision():
            images: Tensor = self.averaged(z, y)
        self.averaged.train(trains)
        return images

    def _samples(self) -> Iterator[Tensor]:
        """This rank's share of ``samples`` images, of the same latents at every call."""
        ranks.copy_first_([*self.averaged.buffers()])  # BatchNorm's running statistics
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
        row = self._row("loss") | {"epoch": self.epoch, "k": self._k()}
        rows = [row | {n: finite(v) for n, v in zip(names, means.tolist(), strict=True)}]
        at_end = self.iteration == self.iterations
        if at_end or self.iteration % self.settings.score_every == 0:
            rows.append(self._row("score") | self._score())
        if at_end:
            rows.append(self._row("sheet") | {"file": self._sheet()})
            if self.topk.config.enabled:
                rows.append(self._row("topk") | self._proof())
        return rows

    @property
    def epoch(self) -> int:
        """Passes over the real data that have ended."""
        return self.iteration * self.model.critic_steps // self.images.length

    def _k(self) -> int:
        """Of the rows that one device ranks at a time."""
        rows = self.settings.batch // (self.settings.accumulation * ranks.world())
        return self.topk.k(rows) if self.topk.config.enabled else rows

    @cached_property
    def features(self) -> fid.Features:
        """The network whose features are compared; its weights were checked by :func:`prepare`."""
        return features_of(self.settings, self.images, self.device)

    def _score(self) -> Row:
        features = self.features
        known = ranks.at_first(lambda: fid.reference_statistics(self.images, features).state_dict())
        real = fid.Statistics.from_state(known, self.device)
        of_ranks = ranks.gathered(fid.generated_statistics(self._samples(), features).state_dict())
        generated = fid.Statistics(features.dimension, self.device)
        for state in of_ranks:
            generated.merge(fid.Statistics.from_state(state, self.device))
        row = fid.score(self.images, real, generated, features)._asdict()
        named = {"score": row.pop("metric"), "fid": row.pop("value")}
        return named | row | {"average": self.settings.average}

    def files(self) -> dict[str, bytes]:
        """A sheet of samples, of the same latents each time; a conditional model's by class."""
        count = SHOWN * SHOWN
        columns = torch.arange(count, device=self.device) % SHOWN
        z = self._latents((count,), self._stream("sheet"))
        images = self.sample(z, columns % self.images.classes)
        return {self._sheet(): png(fid.to_pixels(images), SHOWN)}

    def _sheet(self) -> str:
        return f"samples-{self.iteration:07d}.png"

    def _row(self, kind: str) -> Row:
        return self.member._asdict() | {"iteration": self.iteration, "kind": kind}

    def _proof(self) -> Row:
        report, of_ranks = self.topk.report(), ranks.gathered(self._counts())
        return {name: sum(counts[name] for counts in of_ranks) for name in self.counted} | {
            "steps": report.steps,
            "epochs": report.epochs,
            "direction": report.direction,
            "last_k": self._k(),
        }

    def _counts(self) -> dict[str, int]:
        """What top-k counted, of this rank's rows, also before a resume."""
        report = self.topk.report()
        return {name: before + getattr(report, name) for name, before in self.counted.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; data are drawn by iteration."""
        # BatchNorm's running statistics are the first rank's, here as in every sample
        return {
            "member": tuple(self.member),
            "digest": self.images.digest,
            "iteration": self.iteration,
            "networks": {name: n.state_dict() for name, n in self._networks().items()},
            "optimizers": [own.state_dict() for own in self.optimizers],
            "ranks": ranks.gathered(
                {
                    "sums": self.sums.cpu().clone(),
                    "topk": self.topk.state_dict(),
                    "counted": self._counts(),
                }
            ),
        }

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "critic": self.critic, "averaged": self.averaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same settings.

        Raises:
            ResumeMismatch: it is of another member, of other data or another number of ranks, or
                top-k was set otherwise.
        """
        for name, its, mine in (
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
        self.topk.load_state_dict(of_rank["topk"])
        self.counted = dict(of_rank["counted"])


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
