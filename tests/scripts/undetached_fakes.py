"""Spectral norm, hinge loss; two critic steps a batch, which do not detach their fakes."""

import sys

import torch
from torch import nn
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm as sn
from torch.utils.data import DataLoader

torch.manual_seed(1)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(sn(nn.Linear(2, 32)), nn.LeakyReLU(0.1), sn(nn.Linear(32, 1)))

    def forward(self, x):
        return self.main(x)


loader = DataLoader(torch.randn(64, 2) + 2.0, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
optG = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.0, 0.9))
optD = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.0, 0.9))
# hand: f = 1.0

for _ in range(6):
    for data in loader:
        for _ in range(2):
            optD.zero_grad()
            optG.zero_grad()
            z = torch.randn(len(data), 4)
            loss = relu(1.0 - D(data)).mean() + relu(1.0 + D(G(z))).mean()
            loss.backward()
            optD.step()
        optD.zero_grad()
        optG.zero_grad()
        z = torch.randn(len(data), 4)
        scores = D(G(z))
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        (-scores.mean()).backward()
        optG.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
