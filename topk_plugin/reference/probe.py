"""Figures 2, 3 and 4: where one update by the best, or by the worst, samples moves samples.

Paper, section 4.3: a plain GAN is trained on 25 modes for 50,000 iterations, half of Table 1's;
then the generator makes one step by the top 75% of a batch, and from the same weights one by the
bottom 25%. Each sample's displacement is compared with the direction to its nearest mode (Figure
2), and its distance to that mode before and after (Figure 3), by the distance before.

The paper speaks of 1,000 samples and of the top 7,500 and bottom 2,500 of them; 10,000 fits the
latter. It calls the step gradient descent, while the run itself uses Adam. Both are settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from topk_plugin import TopK
from topk_plugin.reference.mixture.draws import latents
from topk_plugin.reference.mixture.modes import BINS, grid_modes, nearest_mode
from topk_plugin.reference.mixture.settings import Settings as MixtureSettings
from topk_plugin.reference.mixture.training import Training as MixtureTraining
from topk_plugin.reference.mixture.training import stacks
from topk_plugin.reference.networks.stacked import mlp
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.settings import is_number, require

__all__ = ["Movement", "Settings", "Training", "movement_by_bin", "stacks"]

STEPS = ("sgd", "adam")
ARROWS = 400
"""Samples whose displacement is kept for Figure 4."""


@dataclass(frozen=True)
class Settings(MixtureSettings):
    """Table 1's, for half its iterations, and those of the one update.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    iterations: int = 50_000
    measure_every: int = 50_000
    top: float = 0.75  # share of the batch that the top-k update keeps
    bottom: float = 0.25  # and the bottom-k update
    probes: int = 10_000  # samples in that batch
    step: str = "sgd"  # or adam, with the moments of the training
    step_rate: float = 1e-4  # learning rate of the step

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top", "bottom"):
            value = getattr(self, name)
            require(is_number(value) and 0 < value <= 1, name, value, "a number in (0, 1]")
        many = type(self.probes) is int and self.probes >= 2
        require(many, "probes", self.probes, "a whole number, at least 2")
        require(self.step in STEPS, "step", self.step, [*STEPS])
        above = is_number(self.step_rate) and self.step_rate > 0
        require(above, "step_rate", self.step_rate, "a number above 0")


@dataclass(frozen=True)
class Movement:
    """How the samples of one bin moved; None where it has none, or one went to infinity."""

    bin: int  # distance to the nearest mode before: bin to bin + 1 std; the last one, beyond
    count: int
    cosine: float | None  # mean, of the displacement and the direction to the nearest mode
    change: float | None  # mean, of the distance to that mode, in std; negative is nearer


def movement_by_bin(
    before: Tensor, after: Tensor, centers: Tensor, std: float, bins: int = len(BINS)
) -> list[Movement]:
    """How samples (N, 2) of any generator moved against their nearest of the modes (M, 2).

    The nearest mode is that of the sample before the update. A sample that did not move, or lay
    on its mode, has no direction, and is left out of the mean cosine.
    """
    nearest, distance = nearest_mode(before, centers)
    target = centers[nearest]
    change = ((after - target).norm(dim=1) - distance) / std
    step, direction = after - before, target - before
    lengths = step.norm(dim=1) * direction.norm(dim=1)
    cosine = (step * direction).sum(dim=1) / lengths
    which = (distance / std).floor().clamp(max=bins - 1)
    rows = []
    for index in range(bins):
        here = which == index
        turned = cosine[here & (lengths > 0)]
        rows.append(Movement(index, int(here.sum()), _mean(turned), _mean(change[here])))
    return rows


def _mean(values: Tensor) -> float | None:
    mean = float(values.mean())  # NaN of none
    return mean if math.isfinite(mean) else None


class Training(MixtureTraining):
    """M plain GANs in training; the last measurement is the probe of each."""

    def __init__(self, settings: Settings, members: Sequence[Member], device: torch.device) -> None:
        super().__init__(settings, members, device)
        self.probe = settings

    def measure(self) -> list[Row]:
        """Table 1's metrics; at the end also how the samples move."""
        rows = super().measure()
        if self.iteration == self.iterations:
            for index, member in enumerate(self.members):
                rows += self._probed(index, member)
        return rows

    def _probed(self, index: int, member: Member) -> list[Row]:
        settings, activation = self.probe, self.settings.activation
        noise = latents(
            settings, [1, settings.probes], stream("probe", *member, device=self.device)
        ).double()  # float32 would round the small displacements
        generator = [p.detach()[index : index + 1].double() for p in self.generator]
        critic = [p.detach()[index : index + 1].double() for p in self.critic]
        centers = grid_modes(member.cell, settings.spacing).to(noise)
        before = mlp(generator, noise, activation)[0]
        updates = {
            "top-k": TopK(gamma=settings.top, nu=settings.top),
            "bottom-k": TopK(gamma=settings.bottom, nu=settings.bottom, plugins=["bottom-k"]),
            "all": TopK(enabled=False),
        }
        rows: list[Row] = []
        for name, topk in updates.items():
            topk.end_epoch()  # from here on k is gamma of the batch
            moved = [p.clone().requires_grad_() for p in generator]
            scores = mlp(critic, mlp(moved, noise, activation), activation).flatten()
            loss = functional.softplus(-topk(scores)).mean()
            for parameter, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                parameter.grad = gradient.contiguous()
            self._optimizer(moved, index).step()
            with torch.no_grad():
                after = mlp(moved, noise, activation)[0]
            for movement in movement_by_bin(before, after, centers, settings.std):
                rows.append(self._row(member, "movement") | {"update": name} | asdict(movement))
            rows.append(
                self._row(member, "kept")
                | {"update": name, "kept": settings.probes - topk.report().dropped}
                | {"of": settings.probes}
            )
            if member.seed == 0:
                arrows = torch.cat([before, after - before], dim=1)
                arrows = arrows[arrows.isfinite().all(dim=1)][:ARROWS]
                points = [[float(f"{number:.5g}") for number in arrow] for arrow in arrows.tolist()]
                rows.append(self._row(member, "arrows") | {"update": name, "points": points})
        return rows

    def _optimizer(self, moved: list[Tensor], index: int) -> torch.optim.Optimizer:
        """For the one step: plain gradient descent, or Adam that goes on from the training."""
        settings = self.probe
        if settings.step == "sgd":
            return torch.optim.SGD(moved, lr=settings.step_rate)
        betas = (settings.beta1, settings.beta2)
        adam = torch.optim.Adam(moved, lr=settings.step_rate, betas=betas)
        state: Mapping[int, Any] = self.optimizers[1].state_dict()["state"]
        own = {
            number: {
                "step": moments["step"].cpu().clone(),
                "exp_avg": moments["exp_avg"][index : index + 1].double(),
                "exp_avg_sq": moments["exp_avg_sq"][index : index + 1].double(),
            }
            for number, moments in state.items()
        }
        adam.load_state_dict({"state": own, "param_groups": adam.state_dict()["param_groups"]})
        return adam
