"""Networks whose features are compared, and the pixels that they see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the uint8 that a PNG of them holds; what is beyond is cut off."""
    return ((images.float() + 1) * 127.5 + 0.5).nan_to_num(0).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Features:
    """A network whose features are compared."""

    name: str
    metric: str  # what a distance of these features is called
    version: str  # of what computes them
    digest: str  # sha256 of the weights, in hexadecimal
    dimension: int
    device: torch.device
    network: Callable[[Tensor], Tensor]  # of images (B, C, H, W) in [0, 1]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W), uint8; the trainer's autocast is not theirs."""
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels of type {pixels.dtype}, expected torch.uint8: see to_pixels")
        with torch.autocast(self.device.type, enabled=False):
            return self.network(pixels.to(self.device).float() / 255)
