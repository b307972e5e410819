"""A generator, a critic and data that run in a moment, for scripts that cases are made of."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)


class Maker(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, z):
        return self.net(z)


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.b(F.leaky_relu(self.a(x), 0.2))


loader = DataLoader(TensorDataset(torch.randn(64, 8) + 1), batch_size=16)


def nets(judge=Judge):
    """A generator, a critic, and an optimizer of each."""
    m, j = Maker(), judge()
    return m, j, torch.optim.Adam(m.parameters(), 1e-2), torch.optim.Adam(j.parameters(), 1e-2)


def step(x, m, j, om, oj):
    """A critic step and a generator step."""
    oj.zero_grad()
    real, fake = j(x), j(m(torch.randn(len(x), 4)).detach())
    (F.softplus(-real).mean() + F.softplus(fake).mean()).backward()
    oj.step()
    om.zero_grad()
    F.softplus(-j(m(torch.randn(len(x), 4)))).mean().backward()
    om.step()
