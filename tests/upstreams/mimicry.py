# needs: torch_mimicry skimage tensorboard torchvision sklearn
"""Trains one of torch-mimicry's GANs, narrow, by its own trainer, and writes weights.pt.

--hand: with the paper's snippet for gamma 0.75 and nu 0.5 where a user of mimicry would write it,
and with passes counted by the loader.
--other: with a loop and networks of one's own instead.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_mimicry.nets import cgan_pd, dcgan, infomax_gan, sagan, sngan, ssgan, wgan_gp
from torch_mimicry.training import Trainer
from torch_mimicry.training.distributed_trainer import DistributedTrainer

torch.set_num_threads(1)

FAMILIES = {
    "sngan": (sngan.SNGANGenerator32, sngan.SNGANDiscriminator32),
    "sagan": (sagan.SAGANGenerator32, sagan.SAGANDiscriminator32),
    "wgan_gp": (wgan_gp.WGANGPGenerator32, wgan_gp.WGANGPDiscriminator32),
    "ssgan": (ssgan.SSGANGenerator32, ssgan.SSGANDiscriminator32),
    "infomax_gan": (infomax_gan.InfoMaxGANGenerator32, infomax_gan.InfoMaxGANDiscriminator32),
    "cgan_pd": (cgan_pd.CGANPDGenerator32, cgan_pd.CGANPDDiscriminator32),
    "dcgan": (dcgan.DCGANGenerator32, dcgan.DCGANDiscriminator32),
}


class Loader(DataLoader):
    """Counts the passes that began."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def digits(number):
    """``number`` digits as (number, 3, 32, 32) in [-1, 1], and their labels."""
    data = load_digits()
    images = torch.tensor(data.images[:number], dtype=torch.get_default_dtype())[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=32, mode="bilinear")
    return TensorDataset(images.expand(-1, 3, -1, -1), torch.tensor(data.target[:number]))


def by_hand(generator_class, loader):
    """The generator with top-k written into its loss."""

    class ByHand(generator_class):
        def compute_gan_loss(self, output):
            fraction = max(0.75 ** (loader.passes - 1), 0.5)
            k = max(1, int(fraction * len(output) + 1e-9))
            return super().compute_gan_loss(output.topk(k, dim=0).values)

    return ByHand


def build(args, loader, hand=False):
    """The trainer of ``args.family``; seeded, so that every run begins with the same weights."""
    torch.manual_seed(0)
    np.random.seed(0)
    generator_class, critic_class = FAMILIES[args.family]
    if hand:
        generator_class = by_hand(generator_class, loader)
    of_both = {"loss_type": args.loss} if args.loss else {}
    if args.family in ("sagan", "cgan_pd"):
        of_both["num_classes"] = 10
    of_critic = {"nrkhs": 16} if args.family == "infomax_gan" else {}
    generator = generator_class(ngf=8, nz=8, **of_both)
    critic = critic_class(ndf=8, **of_both, **of_critic)
    if args.family == "dcgan":  # its critic begins saturated, without a gradient
        critic.l5.weight.data *= 0.01

    class Stopping(Trainer):
        def _save_model_checkpoints(self, global_step):
            super()._save_model_checkpoints(global_step)
            if global_step == args.stop:
                raise SystemExit

    trainer, extra = Stopping, {"amp": args.amp}
    if args.distributed:
        trainer, extra = DistributedTrainer, {"n_gpus": 1}
    return trainer(
        netD=critic,
        netG=generator,
        optD=torch.optim.Adam(critic.parameters(), 1e-3, betas=(0.0, 0.9)),
        optG=torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.0, 0.9)),
        dataloader=loader,
        num_steps=args.steps,
        n_dis=args.n_dis,
        device=torch.device("cpu"),
        log_dir=f"{args.out}_by_hand" if hand else args.out,
        print_steps=1000,
        log_steps=4,
        vis_steps=args.vis,
        save_steps=args.save,
        **extra,
    )


def train_other():
    """A GAN that has nothing to do with mimicry."""
    critic, generator = nn.Linear(2, 1), nn.Linear(3, 2)
    of_critic, of_generator = (torch.optim.SGD(n.parameters(), 0.1) for n in (critic, generator))
    for _ in range(5):
        of_critic.zero_grad()
        (critic(generator(torch.randn(4, 3)).detach()) - critic(torch.ones(4, 2))).mean().backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(generator(torch.randn(4, 3)))).mean().backward()
        of_generator.step()


def parse(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("family", nargs="?", default="sngan", choices=FAMILIES)
    parser.add_argument("--loss")
    parser.add_argument("--digits", type=int, default=60)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--n-dis", type=int, default=2)
    parser.add_argument("--vis", type=int, default=1000)
    parser.add_argument("--save", type=int, default=1000)
    parser.add_argument("--stop", type=int, help="after this step, which --save has to save")
    parser.add_argument("--out", default="log")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--other", action="store_true")
    return parser.parse_args(arguments)


def main():
    args = parse()
    torch.set_default_dtype(torch.float64)
    if args.other:
        train_other()
        return
    data = digits(args.digits)
    trainer = build(args, Loader(data, batch_size=16, shuffle=True), args.hand)
    trainer.train()
    torch.save([net.state_dict() for net in (trainer.netG, trainer.netD)], "weights.pt")


if __name__ == "__main__":
    main()
