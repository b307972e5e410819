"""A critic that scores real and fake in one call."""

import torch
import torch.nn.functional as F
from small import Judge, loader, nets


class Pair(Judge):
    def forward(self, real, fake):
        return super().forward(real), super().forward(fake)


m, j, om, oj = nets(Pair)
for _ in range(3):
    for (x,) in loader:
        real, fake = j(x, m(torch.randn(len(x), 4)).detach())
        oj.zero_grad()
        F.softplus(-(real - fake)).mean().backward()
        oj.step()
        real, fake = j(x, m(torch.randn(len(x), 4)))
        om.zero_grad()
        F.softplus(-(fake - real)).mean().backward()
        om.step()
