"""A WGAN with passes of a DataLoader."""

import argparse
import sys

import torch  # noqa: F401
from torchvision import datasets

sys.path += [".", "scripts"]

from loops import batches, options, train_wgan
from networks.mnist import EnergyModel, Generator


def parse_args():
    parser = argparse.ArgumentParser()
    options(parser)
    args = parser.parse_args()
    return args  # noqa: RET504


args = parse_args()
dim = args.dim
itr = batches(datasets.CIFAR10("../data", download=True))
netG = Generator(args.z_dim, dim, (3, 32, 32)).cuda()
netD = EnergyModel(dim, (3, 32, 32)).cuda()
train_wgan(args, itr, netG, netD)
