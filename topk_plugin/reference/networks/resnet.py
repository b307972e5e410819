"""Residual networks: the pairs of WGAN-GP, SN-GAN and SAGAN.

One family, as its papers took it from one another:

- WGAN-GP (Gulrajani et al. 2017): ``gan_cifar_resnet.py`` of igul222/improved_wgan_training, at 32
  pixels, 128 channels in both;
- SN-GAN (Miyato et al. 2018): ``resnet_32.py`` and ``snresnet_32.py`` of
  pfnet-research/sngan_projection, 256 channels in the generator, 128 in the critic, whose weights
  are normalised;
- SAGAN (Zhang et al. 2018): ``generator.py`` and ``discriminator.py`` of
  brain-research/self-attention-gan, at 128 pixels; weights of both are normalised, both attend to
  their own maps, BatchNorm's factors and the critic's projection depend on the class. At 32 pixels
  it is PyTorch-StudioGAN's (``configs/CIFAR10/SAGAN.yaml``): attention at 16 pixels in both.

Up to 32 pixels all maps have ``width`` channels. Above, maps of the image's size have ``width``,
and twice as many each time the edge halves, up to 16 times.

A 3x3 convolution next to a change of size by two is one 4x4 convolution of stride two: 16 products
a pixel instead of 36. A 1x1 convolution comes where the maps are small. Both change nothing but
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from topk_plugin.errors import ConfigError
from topk_plugin.reference.networks.layers import doublings, labels_of

FLAT = 32
"""Pixels of the largest images whose networks have maps of one width."""

MOST = 16
"""The widest maps have this times ``width`` channels."""


class ResNetGenerator(nn.Module):
    """Latents (B, latent), and labels (B,) where it has classes, to images (B, C, H, W) in [-1, 1].

    Args:
        size: H and W in pixels, a power of two, at least 16.
        channels: C, 1 or 3.
        latent: numbers in a latent.
        width: channels of the maps of the image's size.
        classes: of the labels; 0 for none, and then labels are ignored.
        spectral: whether weights are divided by their spectral norms.
        attention: the edge in pixels of the maps that attend to themselves; None for none.

    Raises:
        ConfigError: of a size, channels or attention that it cannot make; called without labels.
    """

    def __init__(
        self, size: int, channels: int, latent: int, width: int, classes: int = 0,
        spectral: bool = False, attention: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes = classes
        wide = widths(size, channels, width)
        self.first = linear(latent, 16 * wide[0], spectral)
        self.blocks = nn.ModuleList()
        edge, edges = 4, []
        for inner, out in zip(wide, wide[1:], strict=False):
            self.blocks.append(GeneratorBlock(inner, out, partial(Norm, classes=classes), spectral))
            edges.append(edge := 2 * edge)
        attend(self.blocks, edges, wide[1:], attention, spectral)
        self.norm = nn.BatchNorm2d(wide[-1])
        self.last = convolution(wide[-1], channels, 3, 1.0, spectral)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        y = labels_of(y, self.classes)
        # channels last in memory, so that no layout changes on the way
        x = self.first(z).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.last(functional.relu_(self.norm(x))))


class GeneratorBlock(nn.Module):
    """Maps (B, inner, H, W), and what their normalisation depends on, to (B, out, 2H, 2W).

    Args:
        norm: makes the normalisation of so many channels.
    """

    def __init__(
        self, inner: int, out: int, norm: Callable[[int], nn.Module], spectral: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(inner), norm(out)
        self.conv1 = convolution(inner, out, 3, math.sqrt(2), spectral)
        self.conv2 = convolution(out, out, 3, math.sqrt(2), spectral)
        self.shortcut = convolution(inner, out, 1, 1.0, spectral)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = of_doubled(functional.relu_(self.norm1(x, y)), self.conv1)
        h = self.conv2(functional.relu_(self.norm2(h, y)))
        return h + functional.interpolate(self.shortcut(x), scale_factor=2)


class ResNetCritic(nn.Module):
    """Images (B, C, H, W), and labels (B,) where it has classes, to scores (B,), high for real.

    Its last maps are summed over their pixels; averaged without spectral norms, as WGAN-GP does.

    Args:
        size: H and W in pixels, a power of two, at least 16.
        channels: C, 1 or 3.
        width: channels of the maps after the first block.
        classes: of the labels; 0 for none, and then labels are ignored.
        spectral: whether weights are divided by their spectral norms.
        attention: the edge in pixels of the maps that attend to themselves, after the first block
            that makes such; None for none.

    Raises:
        ConfigError: of a size, channels or attention that it cannot make; called without labels.
    """

    def __init__(
        self, size: int, channels: int, width: int, classes: int = 0, spectral: bool = False,
        attention: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.spectral = classes, spectral
        times = doublings(size, channels)
        if size <= FLAT:
            halved, wide = [True, True, False, False], [width] * 4
        else:  # down to 4 pixels, and one block more
            halved = [True] * times + [False]
            wide = [width * min(MOST, 1 << i) for i in range(times + 1)]
        self.blocks = nn.ModuleList()
        edge, edges = size, []
        for i, (inner, out) in enumerate(zip([channels, *wide], wide, strict=False)):
            self.blocks.append(CriticBlock(inner, out, halved[i], i == 0, spectral))
            edge >>= halved[i]
            edges.append(edge)
        attend(self.blocks, edges, wide, attention, spectral)
        self.score = linear(wide[-1], 1, spectral)
        if classes:
            self.projection = nn.Embedding(classes, wide[-1])
            nn.init.xavier_uniform_(self.projection.weight)
            if spectral:
                spectral_norm(self.projection)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = labels_of(y, self.classes)
        for block in self.blocks:
            x = block(x, y)
        x = functional.relu(x)
        features = x.sum(dim=(2, 3)) if self.spectral else x.mean(dim=(2, 3))
        scores = self.score(features).squeeze(1)
        if y is not None:
            scores = scores + (self.projection(y) * features).sum(dim=1)
        return scores


class CriticBlock(nn.Module):
    """Maps (B, inner, H, W) to (B, out, H, W), or to half the edge where ``halves``.

    Args:
        raw: whether the maps are pixels, which get no activation before the first convolution.
    """

    def __init__(self, inner: int, out: int, halves: bool, raw: bool, spectral: bool) -> None:
        super().__init__()
        self.halves, self.raw = halves, raw
        self.conv1 = convolution(inner, out, 3, math.sqrt(2), spectral)
        self.conv2 = convolution(out, out, 3, math.sqrt(2), spectral)
        self.shortcut: nn.Module = nn.Identity()
        if halves or inner != out:
            self.shortcut = convolution(inner, out, 1, 1.0, spectral)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        # not in place: the shortcut takes the maps as they are
        h = functional.relu_(self.conv1(x if self.raw else functional.relu(x)))
        if not self.halves:
            return self.conv2(h) + self.shortcut(x)
        return then_halved(h, self.conv2) + self.shortcut(functional.avg_pool2d(x, 2))


class Norm(nn.Module):
    """BatchNorm of maps (B, C, H, W), with a factor and a shift for each class where there are any.

    Conditional as in Zhang et al. (2018): factors begin at 1 and shifts at 0.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not classes)
        if classes:
            self.factor, self.shift = (nn.Embedding(classes, channels) for _ in range(2))
            nn.init.ones_(self.factor.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        x = self.norm(x)
        if y is None:
            return x
        return torch.addcmul(self.shift(y)[:, :, None, None], x, self.factor(y)[:, :, None, None])


class Attention(nn.Module):
    """Maps (B, C, H, W) plus what each pixel finds in the others (Zhang et al. 2018, section 3).

    Keys and values are pooled by two, as in ``non_local.py`` of brain-research/self-attention-gan.
    """

    def __init__(self, channels: int, spectral: bool) -> None:
        super().__init__()
        eighth, half = channels // 8, channels // 2
        self.query = convolution(channels, eighth, 1, 1.0, spectral, bias=False)
        self.key = convolution(channels, eighth, 1, 1.0, spectral, bias=False)
        self.value = convolution(channels, half, 1, 1.0, spectral, bias=False)
        self.out = convolution(half, channels, 1, 1.0, spectral, bias=False)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        query, key, value = (
            maps.flatten(2).transpose(1, 2)
            for maps in (
                self.query(x),
                functional.max_pool2d(self.key(x), 2),
                functional.max_pool2d(self.value(x), 2),
            )
        )
        found = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        found = found.transpose(1, 2).unflatten(2, x.shape[2:])
        return torch.addcmul(x, self.weight, self.out(found))


def attend(
    blocks: nn.ModuleList, edges: list[int], wide: list[int], attention: int | None, spectral: bool
) -> None:
    """Inserts attention after the first of the blocks whose maps have that edge.

    Raises:
        ConfigError: no block makes such maps, or they have too few channels.
    """
    if attention is None:
        return
    if attention not in edges:
        raise ConfigError(
            f"attention at {attention} pixels: expected one of {sorted(set(edges))}, "
            "which are the edges of this network's maps"
        )
    at = edges.index(attention)
    if wide[at] < 8:
        raise ConfigError(
            f"attention on {wide[at]} channels: expected at least 8, queries have an eighth of "
            "them; choose a larger width"
        )
    blocks.insert(at + 1, Attention(wide[at], spectral))


def widths(size: int, channels: int, width: int) -> list[int]:
    """Channels of a generator's maps, from 4 pixels to ``size``.

    Raises:
        ConfigError: of a size or channels that it cannot make.
    """
    times = range(doublings(size, channels), -1, -1)
    return [width if size <= FLAT else width * min(MOST, 1 << i) for i in times]


def convolution(
    inner: int, out: int, kernel: int, gain: float, spectral: bool, bias: bool = True
) -> nn.Conv2d:
    """A convolution that keeps the maps' size, from Glorot's uniform distribution; bias 0."""
    layer = nn.Conv2d(inner, out, kernel, padding=kernel // 2, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if spectral:
        spectral_norm(layer)
    return layer


def linear(inner: int, out: int, spectral: bool, bias: bool = True) -> nn.Linear:
    """A linear layer from Glorot's uniform distribution; bias 0."""
    layer = nn.Linear(inner, out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    if spectral:
        spectral_norm(layer)
    return layer


def of_doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The 3x3 convolution of maps whose pixels are doubled in both directions."""
    weight = spread(conv.weight).flip(2, 3).transpose(0, 1)
    return functional.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1)


def then_halved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The 3x3 convolution, and the average of each 2x2 pixels of it."""
    return functional.conv2d(x, spread(conv.weight) / 4, conv.bias, stride=2, padding=1)


def spread(weight: Tensor) -> Tensor:
    """(out, inner, 3, 3) to (out, inner, 4, 4): the sum of its four shifts by up to one pixel."""
    rows = functional.pad(weight, (0, 0, 0, 1)) + functional.pad(weight, (0, 0, 1, 0))
    return functional.pad(rows, (0, 1)) + functional.pad(rows, (1, 0))
