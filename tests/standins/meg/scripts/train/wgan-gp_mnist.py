"""A WGAN of images that are drawn anew for each batch."""

import argparse
import sys

import torch  # noqa: F401

sys.path += [".", "scripts"]

from data.mnist import inf_train_gen
from loops import options, train_wgan
from networks.mnist import EnergyModel, Generator


def parse_args():
    parser = argparse.ArgumentParser()
    options(parser)
    args = parser.parse_args()
    return args  # noqa: RET504


args = parse_args()
dim = args.dim
itr = inf_train_gen(args.batch_size)
netG = Generator(args.z_dim, dim).cuda()
netD = EnergyModel(dim).cuda()
train_wgan(args, itr, netG, netD)
