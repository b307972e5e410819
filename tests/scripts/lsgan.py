"""Least squares; the loss turns its gradient round for scores above one."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(21)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


dataset = TensorDataset(torch.randn(64, 2) * 0.5 + 1, torch.zeros(64))
loader = DataLoader(dataset, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
mse = nn.MSELoss()
opt_g = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.5, 0.999))
opt_d = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
# hand: f = 1.0

for _ in range(7):
    for imgs, _ in loader:
        valid, fake = torch.ones(len(imgs), 1), torch.zeros(len(imgs), 1)

        # the generator first, as some tutorials do
        opt_g.zero_grad()
        gen_imgs = G(torch.randn(len(imgs), 4))
        scores = D(gen_imgs)
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values[:, None]
        g_loss = mse(scores, valid[: len(scores)])
        g_loss.backward()
        opt_g.step()

        opt_d.zero_grad()
        d_loss = 0.5 * (mse(D(imgs), valid) + mse(D(gen_imgs.detach()), fake))
        d_loss.backward()
        opt_d.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
