"""Two critics in the generator's loss, which nobody trains."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader


class A(nn.Linear):
    pass


class B(nn.Linear):
    pass


torch.manual_seed(0)
a, b, g = A(4, 1), B(4, 1), nn.Linear(3, 4)
og = torch.optim.SGD(g.parameters(), 0.1)
for _ in range(3):
    for _ in DataLoader(torch.randn(32, 4), batch_size=8):
        fake = g(torch.randn(8, 3))
        og.zero_grad()
        (F.softplus(-a(fake)).mean() + F.softplus(-b(fake)).mean()).backward()
        og.step()
