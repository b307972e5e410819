"""What a training starts from and sees: the same in every arm of a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.reference.mixture.modes import grid_modes
from topk_plugin.reference.mixture.settings import Settings
from topk_plugin.reference.randomness import stream

CHUNK = 100
"""Iterations whose data are drawn at once."""


def latents(settings: Settings, rows: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws (*rows, latent) from the prior."""
    shape = (*rows, settings.latent)
    if settings.prior == "uniform":
        return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1
    return torch.randn(shape, generator=generator, device=generator.device)


class Draws(NamedTuple):
    """What ``CHUNK`` iterations of one (modes, seed) see, in every arm."""

    real: Tensor  # (CHUNK, critic_steps, B, 2)
    noise: Tensor  # (CHUNK, critic_steps + 1, B, latent); the last one is the generator's


def draw(settings: Settings, modes: int, seed: int, chunk: int, device: torch.device) -> Draws:
    """The data of iterations ``chunk * CHUNK`` and on."""
    generator = stream("data", modes, seed, chunk, device=device)
    rows = (CHUNK, settings.critic_steps, settings.batch)
    which = torch.randint(modes, rows, generator=generator, device=device)
    real = torch.randn((*rows, 2), generator=generator, device=device) * settings.std
    real += grid_modes(modes, settings.spacing).to(device)[which]
    rows = (CHUNK, settings.critic_steps + 1, settings.batch)
    return Draws(real, latents(settings, rows, generator))


def initial_weights(settings: Settings, modes: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Generator's and critic's weights (out, in) and biases (out,), in turns, as of nn.Linear."""
    generator = stream("weights", modes, seed, device=torch.device("cpu"))
    networks = []
    for first, last in ((settings.latent, 2), (2, 1)):
        widths = [first, *[settings.hidden] * (settings.layers - 1), last]
        parameters = []
        for wide, out in zip(widths, widths[1:], strict=False):
            for shape in ((out, wide), (out,)):
                uniform = torch.rand(shape, generator=generator) * 2 - 1
                parameters.append(uniform / math.sqrt(wide))
        networks.append(parameters)
    return networks[0], networks[1]
