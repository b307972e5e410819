"""The networks and the data of scripts that are about something else.

Each script has a critic class of its own, which `--critic __main__:Critic` names.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader


class Scores(nn.Module):
    """(B, width) to (B, 1)."""

    def __init__(self, width=2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


def make_generator():
    """(B, 4) to (B, 2)."""
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))


def make_loader():
    """Four batches of 16."""
    return DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
