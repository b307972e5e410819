"""A critic with a parent class, called twice in a generator step that makes two fakes a sample."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

torch.manual_seed(29)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class BaseCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2))

    def forward(self, x):
        return self.trunk(x)


class Critic(BaseCritic):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        return self.out(super().forward(x))


loader = DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        z1, z2 = torch.randn(2, len(x), 4)
        fake1, fake2 = G(z1), G(z2)
        opt_d.zero_grad()
        d_loss = softplus(-D(x)).mean()
        for fake in (fake1, fake2):
            d_loss = d_loss + 0.5 * softplus(D(fake)).mean()
        d_loss.backward(retain_graph=True)
        opt_d.step()

        opt_g.zero_grad()
        g_loss = 0.1 * (z1 - z2).abs().mean() / ((fake1 - fake2).abs().mean() + 1e-5)
        for fake in (fake1, fake2):
            scores = D(fake)
            # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
            g_loss = g_loss + softplus(-scores).mean()
        g_loss.backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
