"""Networks for 28x28 digits: three of MEG (Kumar et al. 2019), three of BiGAN (Zenati et al. 2018).

Images are (B, 1, 28, 28) in [-1, 1], latents (B, L).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

# --- MEG: networks/mnist.py of ritheshkumar95/energy_based_generative_models --------------------


def meg_generator(latent: int, dim: int) -> nn.Sequential:
    """Latents (B, latent) to images; ``dim`` is the widest layer's channels, a multiple of 8."""
    wide = [dim, dim // 2, dim // 4, dim // 8]
    layers: list[nn.Module] = [nn.Linear(latent, 4 * dim), nn.Unflatten(1, (dim, 2, 2))]
    # 2 to 4, 7, 14 and 28 pixels
    for channels, out, odd in zip(wide, [*wide[1:], 1], (1, 0, 1, 1), strict=True):
        up = nn.ConvTranspose2d(channels, out, 5, stride=2, padding=2, output_padding=odd)
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), up]
    return initialised(nn.Sequential(*layers, nn.Tanh()))


def meg_features(dim: int) -> list[nn.Module]:
    """Layers from images to features (B, 4 * dim)."""
    wide = [1, dim // 8, dim // 4, dim // 2, dim]
    layers: list[nn.Module] = []
    for channels, out in zip(wide, wide[1:], strict=False):  # 28 to 14, 7, 4 and 2 pixels
        layers += [nn.Conv2d(channels, out, 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
    return [*layers, nn.Flatten()]


def meg_energy(dim: int) -> nn.Sequential:
    """Images to energies (B,), low where an image is realistic."""
    return initialised(nn.Sequential(*meg_features(dim), nn.Linear(4 * dim, 1), nn.Flatten(0)))


class MegStatistics(nn.Module):
    """Images and latents to logits (B,): whether a latent is the one that an image was made of."""

    def __init__(self, latent: int, dim: int) -> None:
        super().__init__()
        self.code = nn.Sequential(*meg_features(dim), nn.Linear(4 * dim, latent))
        self.judge = nn.Sequential(
            nn.Linear(2 * latent, dim), nn.LeakyReLU(0.2), nn.Linear(dim, 1), nn.Flatten(0)
        )
        initialised(self)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.judge(torch.cat([self.code(x), z], dim=1))


def initialised(network: Network) -> Network:
    """Convolutions from N(0, 0.02), BatchNorm's factors from N(1, 0.02); all else as torch does."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return network


# --- BiGAN: bigan/mnist_utilities.py of houssamzenati/Efficient-GAN-Anomaly-Detection -----------
#
# Widths follow ``dim``, 64 in the original. Its TensorFlow pads strided 3x3 convolutions on the
# right and bottom only, these pad on the left and top: the same but for a mirror.


def bigan_encoder(latent: int, dim: int) -> nn.Sequential:
    """Images to latents (B, latent)."""
    return normal_init(
        nn.Sequential(
            nn.Conv2d(1, dim // 2, 3, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1), norm2d(dim), nn.LeakyReLU(0.1),
            nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1), norm2d(2 * dim), nn.LeakyReLU(0.1),
            nn.Flatten(), nn.Linear(7 * 7 * 2 * dim, latent),
        )
    )  # fmt: skip


def bigan_generator(latent: int, dim: int) -> nn.Sequential:
    """Latents (B, latent) to images."""
    wide, flat = 16 * dim, 7 * 7 * 2 * dim
    return normal_init(
        nn.Sequential(
            nn.Linear(latent, wide), norm1d(wide), nn.ReLU(),
            nn.Linear(wide, flat), norm1d(flat), nn.ReLU(),
            nn.Unflatten(1, (2 * dim, 7, 7)),
            nn.ConvTranspose2d(2 * dim, dim, 4, stride=2, padding=1), norm2d(dim), nn.ReLU(),
            nn.ConvTranspose2d(dim, 1, 4, stride=2, padding=1), nn.Tanh(),
        )
    )  # fmt: skip


class BiganCritic(nn.Module):
    """Pairs of image and latent to a score (B,), high where the latent encodes a real image."""

    def __init__(self, latent: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, dim, 4, stride=2, padding=1), nn.LeakyReLU(0.1))
        self.second = nn.Sequential(
            nn.Conv2d(dim, dim, 4, stride=2, padding=1), norm2d(dim), nn.LeakyReLU(0.1)
        )
        self.latent = nn.Sequential(nn.Linear(latent, 8 * dim), nn.LeakyReLU(0.1))
        joint = 7 * 7 * dim + 8 * dim
        self.joint = nn.Sequential(nn.Linear(joint, 16 * dim), nn.LeakyReLU(0.1))
        self.score = nn.Linear(16 * dim, 1)
        normal_init(self)

    def forward(
        self, x: Tensor, z: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores (B,) and features (B, 16 * dim) of images ``x`` with latents ``z``.

        Args:
            noise: where dropout draws from; without it nothing is dropped.
        """
        image = dropout(self.second(dropout(self.first(x), noise)), noise)
        latent = dropout(self.latent(z), noise)
        features = self.joint(torch.cat([image.flatten(1), latent], dim=1))
        features = dropout(features, noise)
        return self.score(features).squeeze(1), features


def dropout(x: Tensor, noise: torch.Generator | None) -> Tensor:
    """Each element zero or doubled, at even odds; all as they are without ``noise``."""
    if noise is None:
        return x
    return x * torch.empty_like(x).bernoulli_(0.5, generator=noise) * 2


def norm1d(features: int) -> nn.BatchNorm1d:
    """With TensorFlow's constants, as :func:`norm2d`."""
    return nn.BatchNorm1d(features, eps=1e-3, momentum=0.01)


def norm2d(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def normal_init(network: Network) -> Network:
    """Weights from N(0, 0.02) and biases 0, but for BatchNorm's."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network
