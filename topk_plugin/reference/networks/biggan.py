"""BigGAN's networks (Brock et al. 2019, appendices B and C): the residual family, and

- latents in parts: of the first come the smallest maps, and each block has one of its own;
- one embedding of the class for all blocks: of it and the block's part of the latent, linear maps
  make BatchNorm's factors and shifts;
- spectral norms of all weights but that embedding; all begin orthogonal.

At 32 pixels they are PyTorch-StudioGAN's (``big_resnet.py``, ``configs/CIFAR10/BigGAN.yaml``:
latent 80, width 96, attention at 16 pixels): all maps are 4 times as wide as ``width`` says in the
generator, twice in the critic. At 128 pixels (``configs/ImageNet/BigGAN-256.yaml``: latent 120,
width 96, attention at 64 pixels) ajbrock/BigGAN-PyTorch has the same in
``scripts/launch_BigGAN_bs256x8.sh``, whose epsilon of BatchNorm, 1e-5, is used here. From 256
pixels on both have narrower maps than here.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from topk_plugin.errors import ConfigError
from topk_plugin.reference.networks.layers import labels_of
from topk_plugin.reference.networks.resnet import (
    FLAT,
    GeneratorBlock,
    ResNetCritic,
    attend,
    convolution,
    linear,
    widths,
)


class BigGANGenerator(nn.Module):
    """Latents (B, latent) and labels (B,) to images (B, C, H, W) in [-1, 1].

    Args:
        size: H and W in pixels, a power of two, at least 16.
        channels: C, 1 or 3.
        latent: numbers in a latent, divisible by one more than there are blocks: 4 parts at 32
            pixels, 5 at 64, 6 at 128.
        width: channels of the maps of the image's size; a quarter of them up to 32 pixels.
        classes: of the labels, at least 1.
        shared: numbers of a class's embedding.
        attention: the edge in pixels of the maps that attend to themselves; None for none.

    Raises:
        ConfigError: of a size, channels, latent or attention that it cannot make; called without
            labels.
    """

    def __init__(
        self, size: int, channels: int, latent: int, width: int, classes: int, shared: int = 128,
        attention: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes = classes
        wide = widths(size, channels, 4 * width if size <= FLAT else width)
        self.parts = len(wide)
        if latent % self.parts:
            raise ConfigError(
                f"a latent of {latent} numbers: expected a multiple of {self.parts} at {size} "
                f"pixels, equal parts for the first layer and each of {self.parts - 1} blocks"
            )
        part = latent // self.parts
        self.shared = nn.Embedding(classes, shared)
        self.first = linear(part, 16 * wide[0], spectral=True)
        self.blocks = nn.ModuleList()
        norm = partial(ConditionalNorm, features=shared + part)
        edge, edges = 4, []
        for inner, out in zip(wide, wide[1:], strict=False):
            self.blocks.append(GeneratorBlock(inner, out, norm, spectral=True))
            edges.append(edge := 2 * edge)
        attend(self.blocks, edges, wide[1:], attention, spectral=True)
        self.norm = nn.BatchNorm2d(wide[-1])
        self.last = convolution(wide[-1], channels, 3, 1.0, spectral=True)
        begin_orthogonal(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        label = self.shared(labels_of(y, self.classes))
        first, *parts = z.chunk(self.parts, dim=1)
        # channels last in memory, so that no layout changes on the way
        x = self.first(first).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for block in self.blocks:
            known = isinstance(block, GeneratorBlock)
            x = block(x, torch.cat([label, parts.pop(0)], dim=1) if known else None)
        return torch.tanh(self.last(functional.relu_(self.norm(x))))


class BigGANCritic(ResNetCritic):
    """Images (B, C, H, W) and labels (B,) to scores (B,), high for real.

    Args:
        size: H and W in pixels, a power of two, at least 16.
        channels: C, 1 or 3.
        width: channels of the maps after the first block; half of them up to 32 pixels.
        classes: of the labels, at least 1.
        attention: the edge in pixels of the maps that attend to themselves, after the first block
            that makes such; None for none.

    Raises:
        ConfigError: of a size, channels or attention that it cannot make; called without labels.
    """

    def __init__(
        self, size: int, channels: int, width: int, classes: int, attention: int | None = None
    ) -> None:
        wide = 2 * width if size <= FLAT else width
        super().__init__(size, channels, wide, classes, spectral=True, attention=attention)
        begin_orthogonal(self)


class ConditionalNorm(nn.Module):
    """BatchNorm of maps (B, C, H, W), its factors and shifts linear in features (B, features)."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.factor = linear(features, channels, spectral=True, bias=False)  # beside 1
        self.shift = linear(features, channels, spectral=True, bias=False)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        factor, shift = 1 + self.factor(features), self.shift(features)
        return torch.addcmul(shift[:, :, None, None], self.norm(x), factor[:, :, None, None])


def begin_orthogonal(network: nn.Module) -> None:
    """Makes each layer's weight, with one row for each output, an orthogonal matrix."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            normed = is_parametrized(layer)
            if normed:
                remove_parametrizations(layer, "weight")
            nn.init.orthogonal_(layer.weight)
            if normed:  # anew, so that the vectors of the power iteration are this weight's
                spectral_norm(layer)
