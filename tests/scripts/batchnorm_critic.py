"""A convolutional pair with BatchNorm in both nets; the critic is never frozen; 8x8 images."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(19)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 1, 4, bias=False),
        )

    def forward(self, x):
        return self.main(x)


G = nn.Sequential(
    nn.ConvTranspose2d(8, 8, 4, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(True),
    nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False),
    nn.Tanh(),
)
D = Critic()
loader = DataLoader(torch.rand(64, 1, 8, 8) * 2 - 1, batch_size=16, shuffle=True)
criterion = nn.BCEWithLogitsLoss()
optimizer_d = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_g = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.5, 0.999))
# hand: f = 1.0

for _ in range(5):
    for real in loader:
        D.zero_grad()
        fake = G(torch.randn(real.shape[0], 8, 1, 1))
        output = D(real)
        criterion(output, torch.ones_like(output)).backward()
        output = D(fake.detach())
        criterion(output, torch.zeros_like(output)).backward()
        optimizer_d.step()

        G.zero_grad()
        output = D(fake)
        # hand: output = output.flatten().topk(max(1, int(f * len(output) + 1e-9))).values
        criterion(output, torch.ones_like(output)).backward()
        optimizer_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
