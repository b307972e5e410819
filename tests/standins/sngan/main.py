"""A script with the names that the rules for SN-GAN rely on, and a loop of its own."""

import argparse
from pathlib import Path

import model
import model_resnet
import torch
from torch import nn, optim
from torchvision import datasets

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int, default=4)
parser.add_argument("--loss", default="hinge")
parser.add_argument("--model", default="resnet")
parser.add_argument("--checkpoint_dir", default=".")
args = parser.parse_args()

data = datasets.CIFAR10("../data/", train=True, download=True)
loader = torch.utils.data.DataLoader(data, batch_size=args.batch_size, shuffle=True)
networks = model_resnet if args.model == "resnet" else model
discriminator, generator = networks.Discriminator().cuda(), networks.Generator(8).cuda()
optim_disc = optim.Adam(discriminator.parameters(), 1e-3)
optim_gen = optim.Adam(generator.parameters(), 1e-3)
cross_entropy = nn.BCEWithLogitsLoss()
hinge = nn.ReLU()
ones = torch.ones(args.batch_size, 1).cuda()


def latent():
    return torch.randn(args.batch_size, 8).cuda()


def train(epoch):
    for images, _ in loader:
        if len(images) != args.batch_size:
            continue
        for _ in range(5):
            fake = generator(latent())
            if args.loss == "hinge":
                of_real = hinge(1 - discriminator(images)).mean()
                loss = of_real + hinge(1 + discriminator(fake)).mean()
            elif args.loss == "wasserstein":
                loss = discriminator(fake).mean()
                loss = loss - discriminator(images).mean()
            else:
                loss = cross_entropy(discriminator(images), ones)
                loss = loss + cross_entropy(discriminator(fake), 0 * ones)
            optim_disc.zero_grad()
            loss.backward()
            optim_disc.step()
        fake = generator(latent())
        optim_disc.zero_grad()
        optim_gen.zero_grad()
        if args.loss != "bce":
            of_generator = discriminator(fake).mean().neg()
        else:
            of_generator = cross_entropy(discriminator(fake), ones)
        of_generator.backward()
        optim_gen.step()
    print("critic", loss.data.reshape(1).data[0])


checkpoints = Path(args.checkpoint_dir)
checkpoints.mkdir(exist_ok=True)
for epoch in range(1000):
    train(epoch)
    for name, network in (("disc", discriminator), ("gen", generator)):
        torch.save(network.state_dict(), checkpoints / f"{name}_{epoch}")
