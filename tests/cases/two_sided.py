"""Boundary-seeking GAN: the loss pulls D(G(z)) to 1/2 from either side. Argument: where it starts.

The critic's step is BCE: whatever the generator's loss asks for, real samples get high scores.
"""

import sys

import torch
from torch import nn

torch.manual_seed(0)


class Critic(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Sigmoid()
        )
        self.net[2].bias.data.fill_(bias)

    def forward(self, x):
        return self.net(x)


gen, critic = nn.Linear(4, 2), Critic(float(sys.argv[1]))
og, od = (torch.optim.Adam(net.parameters(), 1e-3) for net in (gen, critic))
loader = torch.utils.data.DataLoader(torch.randn(64, 2) * 0.2 + 2, batch_size=16)
bce, one, zero = nn.BCELoss(), torch.ones(16, 1), torch.zeros(16, 1)
for _ in range(30):
    for real in loader:
        y = critic(gen(torch.randn(16, 4)))
        og.zero_grad()
        (0.5 * ((y.log() - (1 - y).log()) ** 2).mean()).backward()
        og.step()
        fake = gen(torch.randn(16, 4)).detach()
        od.zero_grad()
        (bce(critic(real), one) + bce(critic(fake), zero)).backward()
        od.step()
