# needs: stylegan2_pytorch einops kornia fire torchvision sklearn
"""Trains stylegan2-pytorch's GAN, narrow, by its own trainer, and writes weights.pt and rows.json.

--hand: with top-k for gamma 0.75 and nu 0.5 written into its generator's loss, and with passes
counted by the loader.
--native: with its own top-k, which goes down to half the batch after the first step.
--ranks 2: as the first of two processes has it, without the other.
--other: with a loop and networks of one's own instead.
rows.json has the rows of each backward of the generator that got a gradient.
"""

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from stylegan2_pytorch import stylegan2_pytorch as upstream
from torch import nn

torch.set_num_threads(1)
passes, rows = [], []


def write_digits(number):
    folder = Path("digits")
    folder.mkdir(exist_ok=True)
    for place, image in enumerate(load_digits().images[:number]):
        digit = Image.fromarray((image * 15).astype(np.uint8))
        digit.resize((16, 16), Image.Resampling.BILINEAR).convert("RGB").save(
            folder / f"{place}.png"
        )


def train_by_hand():
    """Top-k in the generator's loss, where a user of the package would write it."""
    own_loss, own_cycle = upstream.gen_hinge_loss, upstream.cycle

    class Loader:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            passes.append(self)
            return iter(self.loader)

    def loss(fake, real):
        k = max(1, math.floor(max(0.75 ** (len(passes) - 1), 0.5) * len(fake) + 1e-9))
        return own_loss(fake.topk(k, largest=False).values, real)

    upstream.gen_hinge_loss = loss
    upstream.cycle = lambda loader: own_cycle(Loader(loader))


def note_rows():
    """Where gradients of the generator's loss arrive."""
    forward = upstream.Generator.forward

    def noting(self, styles, noise):
        images = forward(self, styles, noise)
        if images.requires_grad:
            images.register_hook(
                lambda g: rows.append(g.flatten(1).abs().sum(1).nonzero().flatten().tolist())
            )
        return images

    upstream.Generator.forward = noting


def train_other():
    """A GAN that has nothing to do with the package."""
    critic, generator = nn.Linear(2, 1), nn.Linear(3, 2)
    of_critic, of_generator = (torch.optim.SGD(n.parameters(), 0.1) for n in (critic, generator))
    for _ in range(5):
        of_critic.zero_grad()
        (critic(generator(torch.randn(4, 3)).detach()) - critic(torch.ones(4, 2))).mean().backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(generator(torch.randn(4, 3)))).mean().backward()
        of_generator.step()


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--digits", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--augment", type=float, default=0.5)
    parser.add_argument("--save", type=int, default=1000)
    parser.add_argument("--stop", type=int, help="after this step, which --save has to save")
    parser.add_argument("--ranks", type=int, default=1)
    for flag in ("dual", "quantize", "native", "hand", "other"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def main():
    args = parse()
    torch.set_default_dtype(torch.float64)
    if args.other:
        train_other()
        return
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    write_digits(args.digits)
    # it draws 32-bit noise
    upstream.image_noise = lambda number, size, device: torch.rand(number, size, size, 1)
    if args.hand:
        train_by_hand()
    if args.ranks > 1:
        upstream.DDP = lambda network, device_ids: network
    note_rows()
    trainer = upstream.Trainer(
        image_size=16,
        network_capacity=1,
        latent_dim=8,
        style_depth=2,
        batch_size=args.batch,
        gradient_accumulate_every=args.accumulate,
        lr=1e-3,
        aug_prob=args.augment,
        save_every=args.save,
        evaluate_every=1000,
        num_image_tiles=2,
        num_workers=0,
        dual_contrast_loss=args.dual,
        fq_layers=[1] if args.quantize else [],
        top_k_training=args.native,
        generator_top_k_gamma=1e-9,
        is_ddp=args.ranks > 1,
        world_size=args.ranks,
    )
    trainer.load()
    trainer.set_data_src("digits")
    while trainer.steps < args.steps:
        trainer.train()
        if trainer.steps - 1 == args.stop:
            raise SystemExit
    gan = trainer.GAN
    torch.save([net.state_dict() for net in (gan.S, gan.G, gan.D)], "weights.pt")
    Path("rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
