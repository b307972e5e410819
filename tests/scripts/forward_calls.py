"""Calls netD.forward and netG.forward, not the modules; 8x8 images, scores (B, 1, 1, 1)."""

import sys

import torch
import torch.nn as nn
import torch.optim as optim

torch.manual_seed(3)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4), nn.ReLU(True), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh()
        )

    def forward(self, z):
        return self.main(z)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(8, 1, 4), nn.Sigmoid()
        )

    def forward(self, x):
        return self.main(x)


images = torch.rand(48, 1, 8, 8) * 2 - 1
dataloader = torch.utils.data.DataLoader(images, batch_size=12, shuffle=True, drop_last=True)
netG, netD = Generator(), Critic()
criterion = nn.BCELoss()
optimizerD = optim.Adam(netD.parameters(), lr=0.002, betas=(0.5, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=0.002, betas=(0.5, 0.999))
# hand: f = 1.0

for _ in range(5):
    for real in dataloader:
        netD.zero_grad()
        fake = netG.forward(torch.randn(real.size(0), 6, 1, 1))
        output = netD.forward(real)
        errD_real = criterion(output, torch.ones_like(output))
        output = netD.forward(fake.detach())
        errD = errD_real + criterion(output, torch.zeros_like(output))
        errD.backward()
        optimizerD.step()

        netG.zero_grad()
        output = netD.forward(fake)
        # hand: output = output.flatten().topk(max(1, int(f * len(output) + 1e-9))).values
        errG = criterion(output, torch.ones_like(output))
        errG.backward()
        optimizerG.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": netG.state_dict(), "D": netD.state_dict()}, sys.argv[1])
