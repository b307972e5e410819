"""Training of GANs of images, with and without top-k, by one loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from topk_plugin import TopK
from topk_plugin.errors import RunError
from topk_plugin.reference.images.graphs import Steps
from topk_plugin.reference.images.losses import Losses
from topk_plugin.reference.images.networks import (
    arm_of,
    averaged_copy,
    descend,
    follow_,
    initial_networks,
    optimizer,
    set_learning_rates_,
)
from topk_plugin.reference.images.noise import Noise, NoiseOfMember
from topk_plugin.reference.images.preparation import source_of
from topk_plugin.reference.images.scoring import Scoring
from topk_plugin.reference.images.settings import Settings
from topk_plugin.reference.regularizers import clip_weights_
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.training import Counts, check_checkpoint, proof_of, row_of

DISTRIBUTED = True
"""Ranks that torchrun started train one model together."""

NO_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED",
    "could not create a memory",
)  # fmt: skip
"""Signs of too little memory in errors of CUDA's, the CPU's and oneDNN's."""

LAYOUT = 2
"""Of a checkpoint."""


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
        self.images = source_of(settings, self.member.cell, self.member.seed, device)
        gamma = settings.gamma if arm.gamma is None else arm.gamma
        nu = settings.nu if arm.nu is None else arm.nu
        self.topk, self.critic_topk = (
            TopK(enabled=whose in arm.topk, gamma=gamma, nu=nu, direction=direction)
            for whose, direction in (("generator", "auto"), ("critic", "high"))
        )
        self.gated = {"generator": self.topk, "critic": self.critic_topk}
        self.shown = (*arm.topk, "generator")[0]  # whose k is in the rows of losses
        self.generator, self.critic = (
            network.to(device, dtype).to(memory_format=torch.channels_last)
            for network in initial_networks(self.model, settings, self.member, self.images)
        )
        self.average = self.model.average if settings.average is None else settings.average
        self.averaged = averaged_copy(self.generator) if self.average else None
        self.rates = self.model.learning_rate, self.model.critic_learning_rate
        self.optimizers = [
            optimizer(self.model, network, rate, settings.graphs)
            for network, rate in zip((self.generator, self.critic), self.rates, strict=True)
        ]
        if settings.compile:
            self.generator.compile()
            if not self.model.penalty:  # which a compiled network cannot be differentiated twice
                self.critic.compile()
        self.noise = NoiseOfMember(
            self.member, self.model, settings.batch, self.images.classes, device, dtype
        )
        made, precision = (self.generator, self.critic), self._precision
        self.losses = Losses(self.model, *made, self.topk, self.critic_topk, precision, dtype)
        self.scoring = Scoring(settings, self.images, self.generator, self.noise, precision)
        self.steps = Steps(settings.graphs)
        # critic's loss, generator's loss, score of real, score of generated; since measure_every
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.counts = {whose: Counts(own) for whose, own in self.gated.items()}

    def advance(self, until: int) -> None:
        """Trains up to that iteration, a generator step, at most to the last one.

        Raises:
            RunError: the device has too little memory.
        """
        run = self.steps.run
        with memory_said(self.settings, self.device):
            while self.iteration < min(until, self.iterations):
                if self.iteration % self.settings.measure_every == 0:
                    self.sums.zero_()
                if self.model.decays:
                    left = 1 - self.iteration / self.iterations
                    set_learning_rates_(self.optimizers, [rate * left for rate in self.rates])
                steps = self.model.critic_steps
                for i in range(steps):
                    step = self.iteration * steps + i
                    real, y = self.images.at(step)
                    real, noise = real.to(self.dtype), self.noise.at(self.iteration, i)
                    if self.model.dequantised:
                        real = self.noise.dequantised(real)
                    run(self._critic_step, self.critic_topk, self.iteration, real, y, *noise)
                    if self.settings.decay_every is None and (step + 1) % self.images.length == 0:
                        self._decay_k()
                noise = self.noise.at(self.iteration, steps)
                run(self._generator_step, self.topk, self.iteration, *noise)
                self.iteration += 1
                if self.averaged is not None:
                    follow_(self.averaged, self.generator, self.averages)
                if self.settings.decay_every and self.iteration % self.settings.decay_every == 0:
                    self._decay_k()

    def _decay_k(self) -> None:
        for own in self.gated.values():
            own.end_epoch()

    @property
    def averages(self) -> float:
        """Decay of the averaged weights; 0 while they are the latest."""
        return self.average if self.iteration > self.model.average_from else 0.0

    def _critic_step(self, real: Tensor, y: Tensor, *drawn: Tensor) -> None:
        parts, noise = self.settings.accumulation, Noise(*drawn)
        losses = (
            self._critic_loss(own, labels, noise.part(i, parts)) / parts
            for i, (own, labels) in enumerate(zip(real.chunk(parts), y.chunk(parts), strict=True))
        )
        descend(self.optimizers[1], losses)
        if self.model.clip:
            clip_weights_(self.critic, self.model.clip)

    def _critic_loss(self, real: Tensor, y: Tensor, noise: Noise) -> Tensor:
        loss, told = self.losses.of_critic(real, y, noise)
        weight = 1 / (self.settings.accumulation * self.model.critic_steps)
        self.sums[0] += weight * loss.detach()
        self.sums[2:] += weight * told
        return loss

    def _generator_step(self, *drawn: Tensor) -> None:
        parts, noise = self.settings.accumulation, Noise(*drawn)
        self.critic.requires_grad_(False)  # its weights' gradients are not needed
        losses = (self._generator_loss(noise.part(i, parts)) / parts for i in range(parts))
        descend(self.optimizers[0], losses)
        self.critic.requires_grad_(True)

    def _generator_loss(self, noise: Noise) -> Tensor:
        loss = self.losses.of_generator(noise)
        self.sums[1] += loss.detach().double() / self.settings.accumulation
        return loss

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    # --- what a run keeps -----------------------------------------------------------------------

    @property
    def sampled(self) -> nn.Module:
        """The network that samples: of averaged weights, where there are such."""
        return self.averaged if self.averaged is not None and self.averages else self.generator

    def measure(self) -> list[Row]:
        """Mean losses and scores since the last measurement; at times the Frechet distance.

        At the end also top-k's proof. What is not finite is None in a row.

        Raises:
            RunError: the device has too little memory.
        """
        with memory_said(self.settings, self.device):
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
            score = self.scoring.score(self.sampled)
            rows.append(self._row("score") | score | {"average": self.averages})
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

    def files(self) -> dict[str, bytes]:
        """A sheet of samples."""
        return {self._sheet(): self.scoring.sheet(self.sampled)}

    def _sheet(self) -> str:
        return f"samples-{self.iteration:07d}.png"

    def _row(self, kind: str) -> Row:
        return row_of(self.member, self.iteration, kind)

    def _proof(self, whose: str) -> Row:
        of_ranks = ranks.gathered(self.counts[whose].now())
        summed = {name: sum(counts[name] for counts in of_ranks) for name in of_ranks[0]}
        return proof_of(self.gated[whose], summed, self._k(whose))

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
                    "counted": {whose: own.now() for whose, own in self.counts.items()},
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
        check_checkpoint(
            ("layout", state.get("layout", 1), LAYOUT),
            ("member", state["member"], tuple(self.member)),
            ("digest", state["digest"], self.images.digest),
            ("ranks", len(state["ranks"]), ranks.world()),
        )
        self.iteration = state["iteration"]
        self.steps.begin_at(self.iteration)
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
            self.counts[whose].before = dict(of_rank["counted"][whose])


@contextmanager
def memory_said(settings: Settings, device: torch.device) -> Iterator[None]:
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
        batch, parts = settings.batch, settings.accumulation
        raise RunError(
            f"{device.type}: out of memory with batch {batch} on {ranks.world()} "
            f"rank{'s' * (ranks.world() != 1)} and accumulation {parts} "
            f"({text.splitlines()[0][:200]}). Give --set accumulation={2 * parts}, which "
            f"computes the batch in {2 * parts} parts, or a smaller --set batch; and another "
            "--out, since the settings of a run stay"
        ) from error


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None
