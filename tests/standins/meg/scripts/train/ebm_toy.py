"""An energy-based model of points."""

import argparse
import sys

import torch

sys.path += [".", "scripts"]

from loops import options, train_ebm
from networks.mnist import EnergyModel, Generator, StatisticsNetwork


def parse_args():
    parser = argparse.ArgumentParser()
    options(parser)
    args = parser.parse_args()
    return args  # noqa: RET504


args = parse_args()
dim = args.dim
itr = iter(lambda: torch.randn(args.batch_size, 2), None)
netG = Generator(args.z_dim, dim, (2,)).cuda()
netE = EnergyModel(dim, (2,)).cuda()
netH = StatisticsNetwork(args.z_dim, dim, (2,)).cuda()
train_ebm(args, itr, netG, netE, netH)
