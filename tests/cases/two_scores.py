"""A critic with two scores for a sample, both in the loss; with --hand as one writes it."""

import math
import sys

import torch
from torch import nn
from torch.nn.functional import mse_loss

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.d1, self.d2 = nn.Linear(2, 16), nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, a, b):
        return self.d1(torch.tanh(self.f(a))), self.d2(torch.tanh(self.f(b)))


g1, g2, critic = nn.Linear(4, 2), nn.Linear(4, 2), Critic()
og = torch.optim.SGD([*g1.parameters(), *g2.parameters()], 0.1)
od = torch.optim.SGD(critic.parameters(), 0.1)
one, zero = torch.ones(8, 1), torch.zeros(8, 1)
for epoch in range(4):
    for real in torch.utils.data.DataLoader(torch.randn(32, 2), batch_size=8):
        z = torch.randn(8, 4)
        x1, x2 = g1(z), g2(z)
        v1, v2 = critic(x1, x2)
        if "--hand" in sys.argv:
            k = math.floor(max(0.8**epoch, 0.5) * 8)
            rows = ((v1 + v2) / 2).squeeze(1).topk(k).indices
            v1, v2 = v1[rows], v2[rows]
        og.zero_grad()
        (mse_loss(v1, one[: len(v1)]) + mse_loss(v2, one[: len(v2)])).backward()
        og.step()
        od.zero_grad()
        of_real = sum(mse_loss(v, one) for v in critic(real, real))
        (of_real + sum(mse_loss(v, zero) for v in critic(x1.detach(), x2.detach()))).backward()
        od.step()
print("{:.12f} {:.12f}".format(*(g.weight.sum().item() for g in (g1, g2))))
