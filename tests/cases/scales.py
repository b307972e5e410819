"""A critic, others of its kind in a ModuleList, and networks in the loss that are no critics."""

import torch
import torch.nn.functional as F
from small import loader, nets
from torch import nn


class Coarse(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return self.net(x)


class Perceptual(nn.Module):
    """Gives one number a sample, and nobody trains it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 1).requires_grad_(False)

    def forward(self, x):
        return self.net(x)


class Regressor(nn.Module):
    """Learns along with the generator, from the same gradient."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 1)

    def forward(self, x):
        return self.net(x)


class Encoder(nn.Linear):
    """Features."""


m, j, om, oj = nets()
scales = nn.ModuleList([Coarse(), Coarse()])
oc = torch.optim.Adam(scales.parameters(), 1e-2)
perceptual, regressor, encoder = Perceptual(), Regressor(), Encoder(8, 5)
learns = torch.optim.Adam([*regressor.parameters(), *encoder.parameters()], 1e-2)
for _ in range(3):
    for (x,) in loader:
        z = torch.randn(len(x), 4)
        for critic, optimizer in ((j, oj), *((scale, oc) for scale in scales)):
            optimizer.zero_grad()
            (F.softplus(-critic(x)).mean() + F.softplus(critic(m(z).detach())).mean()).backward()
            optimizer.step()
        scales.requires_grad_(False)
        om.zero_grad()
        learns.zero_grad()
        fake = m(z)
        loss = sum(F.softplus(-critic(fake)).mean() for critic in (j, *scales))
        loss = loss + (regressor(fake) - z[:, :1]).square().mean() + encoder(fake).square().mean()
        (loss - perceptual(fake).mean()).backward()
        om.step()
        learns.step()
        scales.requires_grad_(True)
