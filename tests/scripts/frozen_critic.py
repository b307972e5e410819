"""The critic is frozen while the generator learns; it sits in a DataParallel and has BatchNorm."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

torch.manual_seed(23)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32, bias=False),
            nn.BatchNorm1d(32),
            nn.LeakyReLU(0.2),
            nn.Linear(32, 1),
        )

    def forward(self, x):
        return self.net(x).squeeze(-1)


def toggle(net, on):
    for p in net.parameters():
        p.requires_grad_(on)


loader = DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = nn.DataParallel(Critic())
opt_g = torch.optim.SGD(G.parameters(), lr=0.05, momentum=0.5)
opt_d = torch.optim.SGD(D.parameters(), lr=0.05, momentum=0.5)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        toggle(D, True)
        toggle(G, False)
        opt_d.zero_grad()
        fake = G(torch.randn(len(x), 4))
        (softplus(-D(x)).mean() + softplus(D(fake)).mean()).backward()
        opt_d.step()

        toggle(D, False)
        toggle(G, True)
        opt_g.zero_grad()
        scores = D(G(torch.randn(len(x), 4)))
        # hand: scores = scores.topk(max(1, int(f * len(scores) + 1e-9))).values
        softplus(-scores).mean().backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
