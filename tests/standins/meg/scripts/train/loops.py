"""What the stand-in's scripts share; the genuine ones share nothing."""

import torch
from functions import (
    train_energy_model,
    train_generator,
    train_wgan_discriminator,
    train_wgan_generator,
)

OPTIONS = {"z_dim": 3, "dim": 8, "energy_model_iters": 2, "critic_iters": 2, "generator_iters": 1}
OPTIONS |= {"lamda": 0.1, "batch_size": 4, "epochs": 3, "iters": 9, "label": 1, "n_stack": 1}
OPTIONS |= {"n_points": 9}


def options(parser):
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--save_path")
    parser.add_argument("--dataset")


def adam(network):
    return torch.optim.Adam(network.parameters(), 1e-3)


def batches(data):
    """Endlessly, for iterations that are in no epochs."""
    loader = torch.utils.data.DataLoader(data, batch_size=64, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def train_ebm(args, itr, netG, netE, netH):
    of_G, of_E, of_H = adam(netG), adam(netE), adam(netH)
    for _ in range(args.iters):
        train_generator(netG, netE, netH, of_G, of_H, args, [])
        for _ in range(args.energy_model_iters):
            train_energy_model(next(itr), netG, netE, of_E, args, [])


def train_wgan(args, itr, netG, netD):
    of_G, of_D = adam(netG), adam(netD)
    for _ in range(args.iters):
        train_wgan_generator(netG, netD, of_G, args)
        for _ in range(args.critic_iters):
            train_wgan_discriminator(next(itr), netG, netD, of_D, args, [])
