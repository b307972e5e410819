"""Train a small DCGAN on scikit-learn's handwritten digits, upsampled to 32x32.

    python dcgan_digits.py --epochs 40 --seed 0 --out runs/digits

Writes samples.png (8x8 images from fixed noise) and checkpoint.pt to --out.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NOISE = 64


class Generator(nn.Module):
    """Noise (B, 64) to images (B, 1, 32, 32) in [-1, 1]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(NOISE, 4 * width, 4, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise[:, :, None, None])


class Critic(nn.Module):
    """Images (B, 1, 32, 32) to logits (B,), high for real."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten()


def init_weights(module: nn.Module) -> None:
    """The DCGAN initialisation: weights from N(0, 0.02), BatchNorm scales from N(1, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def load_images() -> Tensor:
    """All 1797 digits as (1797, 1, 32, 32) in [-1, 1]."""
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    return F.interpolate(digits, size=32, mode="bilinear")


def save_grid(images: Tensor, path: Path) -> None:
    """Write 64 images (64, 1, 32, 32) as one 8x8 grid."""
    tiles = F.pad(images, (2, 2, 2, 2), value=1.0).reshape(8, 8, 36, 36)
    plt.imsave(path, tiles.transpose(1, 2).reshape(288, 288), cmap="gray", vmin=-1, vmax=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="DCGAN on scikit-learn's digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    loader = DataLoader(
        TensorDataset(load_images()), batch_size=args.batch_size, shuffle=True, drop_last=True
    )
    generator, critic = Generator().apply(init_weights), Critic().apply(init_weights)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=args.lr, betas=(0.5, 0.999))
    optimizer_c = torch.optim.Adam(critic.parameters(), lr=args.lr, betas=(0.5, 0.999))
    fixed_noise = torch.randn(64, NOISE)
    real_target = torch.ones(args.batch_size)
    fake_target = torch.zeros(args.batch_size)

    for epoch in range(args.epochs):
        start = time.perf_counter()
        loss_c_sum = loss_g_sum = 0.0
        for (real,) in loader:
            fake = generator(torch.randn(args.batch_size, NOISE))

            loss_c = F.binary_cross_entropy_with_logits(critic(real), real_target)
            loss_c = loss_c + F.binary_cross_entropy_with_logits(critic(fake.detach()), fake_target)
            optimizer_c.zero_grad()
            loss_c.backward()
            optimizer_c.step()

            loss_g = F.binary_cross_entropy_with_logits(critic(fake), real_target)
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()

            loss_c_sum += loss_c.item()
            loss_g_sum += loss_g.item()
        print(
            f"epoch {epoch + 1:>3}/{args.epochs}"
            f"  critic {loss_c_sum / len(loader):.3f}"
            f"  generator {loss_g_sum / len(loader):.3f}"
            f"  {time.perf_counter() - start:.1f} s",
            flush=True,
        )

    with torch.no_grad():
        save_grid(generator(fixed_noise), args.out / "samples.png")
    torch.save(
        {"generator": generator.state_dict(), "critic": critic.state_dict()},
        args.out / "checkpoint.pt",
    )


if __name__ == "__main__":
    main()
