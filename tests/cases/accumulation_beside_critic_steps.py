"""The critic steps on each micro-batch and is never frozen; the generator on every second one."""

import torch
import torch.nn.functional as F
from small import loader, nets

m, j, om, oj = nets()
for _ in range(3):
    for i, (x,) in enumerate(loader):
        oj.zero_grad()
        real, fake = j(x), j(m(torch.randn(len(x), 4)).detach())
        (F.softplus(-real).mean() + F.softplus(fake).mean()).backward()
        oj.step()
        (F.softplus(-j(m(torch.randn(len(x), 4)))).mean() / 2).backward()
        if i % 2:
            om.step()
            om.zero_grad()
