"""Strided convolutions with BatchNorm: the pair of DCGAN, of WGAN and of MSGAN.

Radford et al. (2015), section 3 and figure 1. At any size the maps have ``width`` channels at half
the image's edge and twice as many each time the edge halves, down to 4 pixels:

- DCGAN and WGAN (Arjovsky et al. 2017): no biases in convolutions, as ``dcgan/main.py`` of
  pytorch/examples (64 pixels) and ``models/dcgan.py`` of martinarjovsky/WassersteinGAN (any size);
- MSGAN (Mao et al. 2019): labels join latents and images, and convolutions have biases, as
  ``DCGAN-Mode-Seeking/networks.py`` of HelenMao/MSGAN, whose width is 128.

Critics end in a score: DCGAN's and MSGAN's sigmoid belongs to the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from topk_plugin.reference.networks.layers import doublings, labels_of


class DCGANGenerator(nn.Module):
    """Latents (B, latent), and labels (B,) where it has classes, to images (B, C, H, W) in [-1, 1].

    Args:
        size: H and W in pixels, a power of two, at least 16.
        channels: C, 1 or 3.
        latent: numbers in a latent.
        width: channels of the maps at half the image's edge.
        classes: of the labels; 0 for none, and then labels are ignored.
        bias: whether convolutions have biases.

    Raises:
        ConfigError: of a size or of channels that it cannot make; called without labels.
    """

    def __init__(
        self, size: int, channels: int, latent: int, width: int, classes: int = 0,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes = classes
        wide = [width << i for i in reversed(range(doublings(size, channels)))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent + classes, wide[0], 4, bias=bias)]
        for inner, out in zip(wide, [*wide[1:], channels], strict=True):
            up = nn.ConvTranspose2d(inner, out, 4, stride=2, padding=1, bias=bias)
            layers += [nn.BatchNorm2d(inner), nn.ReLU(inplace=True), up]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        initialise(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        y = labels_of(y, self.classes)
        if y is not None:
            z = torch.cat([z, functional.one_hot(y, self.classes).to(z.dtype)], dim=1)
        return self.layers(z[:, :, None, None])


class DCGANCritic(nn.Module):
    """Images (B, C, H, W), and labels (B,) where it has classes, to scores (B,), high for real.

    BatchNorm ties a batch's images together: the papers' loops score real and fake ones apart.

    Args, Raises:
        those of :class:`DCGANGenerator`.
    """

    def __init__(
        self, size: int, channels: int, width: int, classes: int = 0, bias: bool = False
    ) -> None:
        super().__init__()
        self.classes = classes
        wide = [width << i for i in range(doublings(size, channels))]
        layers: list[nn.Module] = []
        for i, (inner, out) in enumerate(zip([channels + classes, *wide], wide, strict=False)):
            layers.append(nn.Conv2d(inner, out, 4, stride=2, padding=1, bias=bias))
            layers += [nn.BatchNorm2d(out)] * (i > 0)  # none on pixels
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide[-1], 1, 4, bias=bias), nn.Flatten(0))
        initialise(self)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = labels_of(y, self.classes)
        if y is not None:
            maps = functional.one_hot(y, self.classes).to(x.dtype)[:, :, None, None]
            x = torch.cat([x, maps.expand(-1, -1, *x.shape[2:])], dim=1)
        return self.layers(x)


def initialise(network: nn.Module) -> None:
    """Convolutions from N(0, 0.02), BatchNorm's factors from N(1, 0.02); biases as torch does."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
