"""Both optimizers step on every second micro-batch; the generator's part freezes the critic."""

import torch
import torch.nn.functional as F
from small import loader, nets

m, j, om, oj = nets()
for _ in range(3):
    for i, (x,) in enumerate(loader):
        real, fake = j(x), j(m(torch.randn(len(x), 4)).detach())
        ((F.softplus(-real).mean() + F.softplus(fake).mean()) / 2).backward()
        if i % 2:
            oj.step()
            oj.zero_grad()
        j.requires_grad_(False)
        (F.softplus(-j(m(torch.randn(len(x), 4)))).mean() / 2).backward()
        j.requires_grad_(True)
        if i % 2:
            om.step()
            om.zero_grad()
