"""Networks of a few weights, for 28x28 images or, with another shape, for anything else."""

import math

import torch
from torch import nn

IMAGE = (1, 28, 28)


class Generator(nn.Module):
    def __init__(self, z_dim, dim, shape=IMAGE):
        super().__init__()
        layers = nn.Linear(z_dim, dim), nn.BatchNorm1d(dim), nn.Linear(dim, math.prod(shape))
        self.layers = nn.Sequential(*layers, nn.Tanh(), nn.Unflatten(1, shape))

    def forward(self, z):
        return self.layers(z)


def score(features, dim):
    return nn.Sequential(nn.Linear(features, dim), nn.LeakyReLU(), nn.Linear(dim, 1))


class EnergyModel(nn.Module):
    def __init__(self, dim, shape=IMAGE):
        super().__init__()
        self.score = score(math.prod(shape), dim)

    def forward(self, x):
        return self.score(x.flatten(1))[:, 0]


class StatisticsNetwork(nn.Module):
    def __init__(self, z_dim, dim, shape=IMAGE):
        super().__init__()
        self.score = score(z_dim + math.prod(shape), dim)

    def forward(self, x, z):
        return self.score(torch.cat([x.flatten(1), z], 1))[:, 0]
