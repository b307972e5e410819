"""Gradient accumulation: every optimizer step follows two backward calls on micro-batches."""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MICRO = 2

torch.manual_seed(5)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 24), nn.Linear(24, 24), nn.Linear(24, 1)])

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)


G = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))
D = Critic()
g_opt = torch.optim.SGD(G.parameters(), lr=0.05, momentum=0.5)
d_opt = torch.optim.SGD(D.parameters(), lr=0.05, momentum=0.5)
loader = DataLoader(TensorDataset(torch.randn(96, 2) + 1), batch_size=24, shuffle=True)
# hand: f = 1.0

for _ in range(6):
    for (batch,) in loader:
        parts = batch.chunk(MICRO)

        d_opt.zero_grad()
        for part in parts:
            fake = G(torch.randn_like(part)).detach()
            d_loss = F.softplus(-D(part)).mean() + F.softplus(D(fake)).mean()
            (d_loss / MICRO).backward()
        d_opt.step()

        g_opt.zero_grad()
        for part in parts:
            scores = D(G(torch.randn_like(part)))
            # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
            g_loss = F.softplus(-scores).mean()
            (g_loss / MICRO).backward()
        g_opt.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
