"""An energy-based model with passes of a DataLoader."""

import argparse
import sys

import torch  # noqa: F401
from torchvision import datasets

sys.path += [".", "scripts"]

from loops import batches, options, train_ebm
from networks.mnist import EnergyModel, Generator, StatisticsNetwork


def parse_args():
    parser = argparse.ArgumentParser()
    options(parser)
    args = parser.parse_args()
    return args  # noqa: RET504


args = parse_args()
dim = args.dim
itr = batches(datasets.CIFAR10("../data", download=True))
netG = Generator(args.z_dim, dim, (3, 32, 32)).cuda()
netE = EnergyModel(dim, (3, 32, 32)).cuda()
netH = StatisticsNetwork(args.z_dim, dim, (3, 32, 32)).cuda()
train_ebm(args, itr, netG, netE, netH)
