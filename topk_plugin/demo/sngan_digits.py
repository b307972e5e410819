"""Train torch-mimicry's SN-GAN on scikit-learn's handwritten digits, upsampled to 32x32.

    python sngan_digits.py --steps 450 --seed 0 --out runs/digits

Writes samples.png (8x8 images from fixed noise) and samples/ (1000 images) to --out, beside
mimicry's checkpoints and logs.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from torch_mimicry.nets import sngan
from torch_mimicry.training import Trainer
from torchvision.utils import save_image


def load_data() -> TensorDataset:
    """All 1797 digits as (1797, 3, 32, 32) in [-1, 1], and their labels (1797,)."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    return TensorDataset(images, torch.tensor(digits.target))


def main() -> None:
    parser = argparse.ArgumentParser(description="SN-GAN on scikit-learn's digits")
    parser.add_argument("--steps", type=int, default=450, help="generator steps")
    parser.add_argument("--width", type=int, default=16, help="ngf and ndf of the networks")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--n-dis", type=int, default=1, help="critic steps a generator step")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    loader = DataLoader(load_data(), batch_size=args.batch_size, shuffle=True, drop_last=True)
    generator = sngan.SNGANGenerator32(ngf=args.width)
    discriminator = sngan.SNGANDiscriminator32(ndf=args.width)
    fixed_noise = torch.randn(64, generator.nz)

    trainer = Trainer(
        netD=discriminator,
        netG=generator,
        optD=torch.optim.Adam(discriminator.parameters(), args.lr, betas=(0.0, 0.9)),
        optG=torch.optim.Adam(generator.parameters(), args.lr, betas=(0.0, 0.9)),
        dataloader=loader,
        num_steps=args.steps,
        n_dis=args.n_dis,
        log_dir=str(args.out),
        print_steps=max(1, args.steps // 20),
        device=torch.device("cpu"),
    )
    trainer.train()

    generator.eval()
    with torch.no_grad():
        images = generator(fixed_noise)
        many = torch.cat([generator(torch.randn(100, generator.nz)) for _ in range(10)])
    save_image(images, args.out / "samples.png", normalize=True, value_range=(-1, 1))
    (args.out / "samples").mkdir(exist_ok=True)
    for number, image in enumerate(many):
        file = args.out / "samples" / f"{number:04}.png"
        save_image(image, file, normalize=True, value_range=(-1, 1))


if __name__ == "__main__":
    main()
