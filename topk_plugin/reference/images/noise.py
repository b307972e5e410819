"""What one step draws beside the real images: latents, labels, and how images are augmented.

Each rank draws the whole batch's noise and takes its rows, so that it does not depend on their
number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.reference.models import Model
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.training import stream_of


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


class NoiseOfMember:
    """Draws the noise of a member's steps; arms with its cell and seed draw the same.

    Args:
        model: whose latents these are.
        batch: rows over all ranks.
        classes: of the real images.
        device, dtype: of what is drawn.
    """

    def __init__(
        self,
        member: Member,
        model: Model,
        batch: int,
        classes: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.member, self.model, self.batch, self.classes = member, model, batch, classes
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device)

    def at(self, iteration: int, step: int) -> Noise:
        """Draws the whole batch's noise of a step and takes this rank's rows."""
        # seeded by iteration, so that a resumed run needs no state of it
        seed = stream_of(self.member, "noise", iteration, step).initial_seed()
        draws, rows = self.generator.manual_seed(seed), self.batch
        z, other = self.latents((2, rows), draws)
        y = torch.randint(self.classes, (rows,), generator=draws, device=draws.device)
        mix = torch.rand(rows, generator=draws, device=draws.device).to(self.dtype)
        moves = torch.rand(
            rows, 6 if self.model.balanced else 0, generator=draws, device=draws.device
        )
        return Noise(z, other, y, mix, moves).part(ranks.rank(), ranks.world())

    def latents(self, rows: tuple[int, ...], draws: torch.Generator) -> Tensor:
        """(*rows, L) of the model's prior."""
        shape = (*rows, self.model.latent)
        if self.model.prior == "uniform":
            z = torch.rand(shape, generator=draws, device=draws.device) * 2 - 1
        else:
            z = torch.randn(shape, generator=draws, device=draws.device)
        return z.to(self.device, self.dtype)

    def dequantised(self, real: Tensor) -> Tensor:
        """This rank's images (b, C, H, W), whose 256 grey levels become intervals of [-1, 1).

        Goes on from what :meth:`at` drew last.
        """
        shape = (self.batch, *real.shape[1:])  # of all ranks, as all noise
        share = torch.rand(shape, generator=self.generator, device=self.device)
        own = share.chunk(ranks.world())[ranks.rank()].to(real)
        return ((real + 1) * 127.5 + own) / 128 - 1
