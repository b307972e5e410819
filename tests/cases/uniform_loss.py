"""Softmax-GAN's losses: its critic gives low scores to real samples."""

import torch
from torch import nn

torch.manual_seed(1)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


def losses(real, fake):
    dr, df = critic(real), critic(fake)
    z = torch.log(torch.exp(-dr).sum() + torch.exp(-df).sum())
    return dr.mean() + z, (dr.sum() + df.sum()) / (2 * len(real)) + z


gen, critic = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)), Critic()
og, od = (torch.optim.Adam(net.parameters(), 1e-3) for net in (gen, critic))
data = torch.randn(64, 2) * 0.2 + torch.tensor([2.0, 0.0])
for _ in range(6):
    for real in torch.utils.data.DataLoader(data, batch_size=16):
        fake = gen(torch.randn(16, 4))
        od.zero_grad()
        losses(real, fake.detach())[0].backward()
        od.step()
        og.zero_grad()
        losses(real, fake)[1].backward()
        og.step()
