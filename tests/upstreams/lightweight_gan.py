# needs: lightweight_gan einops kornia fire torchvision sklearn
"""Trains lightweight-gan's GAN, narrow, by its own trainer, and writes weights.pt and rows.json.

--hand: with top-k for gamma 0.75 and nu 0.5 written into its generator's step, and with passes
counted by the loader.
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
from lightweight_gan import lightweight_gan as upstream
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)
passes, rows = [], []


def write_digits(number, size):
    folder = Path("digits")
    folder.mkdir(exist_ok=True)
    for place, image in enumerate(load_digits().images[:number]):
        digit = Image.fromarray((image * 15).astype(np.uint8))
        digit.resize((size, size), Image.Resampling.BILINEAR).convert("RGB").save(
            folder / f"{place}.png"
        )


def make_narrow():
    """The critic of the small image has 64 channels and attention, which are no settings."""
    build = upstream.Discriminator.__init__

    def narrow(self, **options):
        build(self, **options)
        self.to_shape_disc_out = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.AdaptiveAvgPool2d((4, 4)),
            nn.Conv2d(4, 1, 4),
        )

    upstream.Discriminator.__init__ = narrow


def train_by_hand():
    """The rows that are kept, of both outputs, where a user of the package would take them."""
    forward, own_cycle = upstream.AugWrapper.forward, upstream.cycle

    class Loader:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            passes.append(self)
            return iter(self.loader)

    def kept(self, images, *args, **kwargs):
        output = forward(self, images, *args, **kwargs)
        if kwargs.get("detach") or not images.requires_grad or images.is_leaf:
            return output
        logits, of_32x32, nothing = output
        k = max(1, math.floor(max(0.75 ** (len(passes) - 1), 0.5) * len(images) + 1e-9))
        scores = logits.flatten(1).mean(1) + of_32x32.flatten(1).mean(1)
        best = scores.topk(k, largest=False).indices
        return logits[best], of_32x32[best], nothing

    upstream.AugWrapper.forward = kept
    upstream.cycle = lambda loader: own_cycle(Loader(loader))


def note_rows():
    """Where gradients of the generator's loss arrive."""
    forward = upstream.Generator.forward

    def noting(self, latents):
        images = forward(self, latents)
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
    parser.add_argument("--digits", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--augment", type=float, default=0.5)
    parser.add_argument("--output-size", type=int, default=1, choices=(1, 5))
    parser.add_argument("--save", type=int, default=1000)
    parser.add_argument("--stop", type=int, help="after this step, which --save has to save")
    for flag in ("dual", "hand", "other"):
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
    write_digits(args.digits, 64)
    make_narrow()
    if args.hand:
        train_by_hand()
    note_rows()
    trainer = upstream.Trainer(
        image_size=64,
        latent_dim=8,
        fmap_inverse_coef=7,
        disc_output_size=args.output_size,
        batch_size=args.batch,
        gradient_accumulate_every=args.accumulate,
        lr=1e-3,
        aug_prob=args.augment,
        save_every=args.save,
        evaluate_every=1000,
        num_image_tiles=3,
        num_workers=0,
        use_aim=False,
        dual_contrast_loss=args.dual,
    )
    trainer.load()
    trainer.set_data_src("digits")
    while trainer.steps < args.steps:
        trainer.train()
        if trainer.steps - 1 == args.stop:
            raise SystemExit
    gan = trainer.GAN
    torch.save([net.state_dict() for net in (gan.G, gan.D)], "weights.pt")
    Path("rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
