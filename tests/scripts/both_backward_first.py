"""Both losses are backwarded before either optimizer steps; the critic steps first."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

torch.manual_seed(9)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)[:, 0]


G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
loader = DataLoader(torch.randn(64, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]), 16, shuffle=True)
# hand: f = 1.0

for _ in range(5):
    for real in loader:
        fake = G(torch.randn(len(real), 4))
        scores = D(fake)
        # hand: scores = scores.topk(max(1, int(f * len(scores) + 1e-9))).values
        g_loss = softplus(-scores).mean()
        d_loss = softplus(-D(real)).mean() + softplus(D(fake.detach())).mean()

        opt_g.zero_grad()
        g_loss.backward(retain_graph=True)
        opt_d.zero_grad()  # what the generator's loss left in the critic
        d_loss.backward()
        opt_d.step()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
