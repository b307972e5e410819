# needs: torchgan torchvision sklearn
"""Trains torchgan's GANs, narrow, by its own trainer, and writes weights.pt.

--hand: with the paper's snippet for gamma 0.75 and nu 0.5 where a user of torchgan would write it,
and with passes counted by the loader.
--other: with a loop and networks of one's own instead.
"""

import argparse
import os

os.environ |= {"TENSORBOARD_LOGGING": "0", "VISDOM_LOGGING": "0"}

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchgan import losses
from torchgan.models import (
    ACGANDiscriminator,
    ACGANGenerator,
    AutoEncodingDiscriminator,
    DCGANDiscriminator,
    DCGANGenerator,
)
from torchgan.trainer import Trainer

torch.set_num_threads(1)
LOSSES = {
    "minimax": (losses.MinimaxGeneratorLoss, losses.MinimaxDiscriminatorLoss),
    "least-squares": (losses.LeastSquaresGeneratorLoss, losses.LeastSquaresDiscriminatorLoss),
    "wasserstein": (losses.WassersteinGeneratorLoss, losses.WassersteinDiscriminatorLoss),
    "energy": (losses.EnergyBasedGeneratorLoss, losses.EnergyBasedDiscriminatorLoss),
}


class Loader(DataLoader):
    """Counts the passes that began."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def digits(number, size):
    data = load_digits()
    images = torch.tensor(data.images[:number], dtype=torch.get_default_dtype())[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=size, mode="bilinear")
    return TensorDataset(images, torch.tensor(data.target[:number]))


def write_by_hand(loss_class, loader):
    """Top-k in a loss's ``forward``; the trainer pickles losses, so they stay of their class."""
    forward = loss_class.forward

    def by_hand(self, scores):
        fraction = max(0.75 ** (loader.passes - 1), 0.5)
        k = max(1, int(fraction * len(scores) + 1e-9))
        low = loss_class is losses.EnergyBasedGeneratorLoss
        return forward(self, scores.topk(k, dim=0, largest=not low).values)

    loss_class.forward = by_hand


def train_other():
    """A GAN that has nothing to do with torchgan."""
    critic, generator = nn.Linear(2, 1), nn.Linear(3, 2)
    of_critic, of_generator = (torch.optim.SGD(n.parameters(), 0.1) for n in (critic, generator))
    for _ in range(5):
        of_critic.zero_grad()
        (critic(generator(torch.randn(4, 3)).detach()) - critic(torch.ones(4, 2))).mean().backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(generator(torch.randn(4, 3)))).mean().backward()
        of_generator.step()


def network(cls, **options):
    widths = {"step_channels": 4, "out_channels": 1, "in_channels": 1}
    known = cls.__init__.__code__.co_varnames
    given = options | {name: width for name, width in widths.items() if name in known}
    settings = {"lr": 1e-3, "betas": (0.5, 0.999)}
    return {
        "name": cls,
        "args": given,
        "optimizer": {"name": torch.optim.Adam, "args": settings},
    }


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("loss", nargs="?", default="minimax", choices=LOSSES)
    parser.add_argument("--digits", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--critic-steps", type=int, default=1)
    parser.add_argument("--load", help="a checkpoint to go on from")
    for flag in ("classify", "penalty", "hand", "other"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def main():
    args = parse()
    torch.set_default_dtype(torch.float64)
    if args.other:
        train_other()
        return
    torch.manual_seed(0)
    size = 32 if args.loss == "energy" else 16
    loader = Loader(digits(args.digits, size), batch_size=16, shuffle=True, drop_last=args.classify)
    of_generator, of_critic = LOSSES[args.loss]
    if args.hand:
        write_by_hand(of_generator, loader)
    all_losses = [of_generator(), of_critic()]
    kinds, options, of_energies = (DCGANGenerator, DCGANDiscriminator), {}, {}
    if args.classify:
        kinds, options = (ACGANGenerator, ACGANDiscriminator), {"num_classes": 10}
        all_losses += [losses.AuxiliaryClassifierGeneratorLoss()]
        all_losses += [losses.AuxiliaryClassifierDiscriminatorLoss()]
    if args.loss == "energy":  # of an autoencoder that reconstructs the images badly
        kinds, of_energies = (DCGANGenerator, AutoEncodingDiscriminator), {"embeddings": True}
        all_losses[1] = of_critic(margin=80.0)
        all_losses.append(losses.EnergyBasedPullingAwayTerm())
    if args.penalty:
        all_losses.append(losses.WassersteinGradientPenalty())
    trainer = Trainer(
        {
            "generator": network(kinds[0], encoding_dims=8, out_size=size, **options),
            "discriminator": network(kinds[1], in_size=size, **options, **of_energies),
        },
        all_losses,
        device=torch.device("cpu"),
        ncritic=args.critic_steps,
        epochs=args.epochs,
        sample_size=4,
        checkpoints="model/gan",
        retain_checkpoints=10,
        recon="images",
    )
    if args.load:
        trainer.load_model(args.load)
    trainer(loader)
    torch.save(
        [net.state_dict() for net in (trainer.generator, trainer.discriminator)], "weights.pt"
    )


if __name__ == "__main__":
    main()
