"""Epochs over an array of other data."""

import argparse
import sys

import torch

sys.path += [".", "scripts"]

from data.kdd import get_train
from functions import train_energy_model, train_generator
from loops import adam, options
from networks.mnist import EnergyModel, Generator, StatisticsNetwork


def parse_args():
    parser = argparse.ArgumentParser()
    options(parser)
    args = parser.parse_args()
    return args  # noqa: RET504


args = parse_args()
dim = args.dim
size = args.batch_size
train_set = get_train()[0]
netG = Generator(args.z_dim, dim, (121,)).cuda()
netE = EnergyModel(dim, (121,)).cuda()
netH = StatisticsNetwork(args.z_dim, dim, (121,)).cuda()
of_G, of_E, of_H = adam(netG), adam(netE), adam(netH)
costs, steps = [], 0
for epoch in range(args.epochs):  # noqa: B007
    for i in range(0, len(train_set), size):
        x_real = torch.from_numpy(train_set[i : i + size]).cuda()
        train_energy_model(x_real, netG, netE, of_E, args, costs)
        train_generator(netG, netE, netH, of_G, of_H, args, costs)
