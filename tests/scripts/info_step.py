"""Un-detached fakes in the critic steps, then an information step that calls no critic."""

import sys

import torch
from torch import nn
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader

torch.manual_seed(30)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def mlp(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 32), nn.ReLU(), nn.Linear(32, n_out))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(2, 1)

    def forward(self, x):
        return self.net(x)


G, D, Q = mlp(4, 2), Critic(), mlp(2, 4)
opt_g = torch.optim.Adam(G.parameters(), lr=1e-3)
opt_d = torch.optim.Adam(D.parameters(), lr=1e-3)
opt_info = torch.optim.Adam([*G.parameters(), *Q.parameters()], lr=1e-3)
loader = DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        for _ in range(2):
            opt_d.zero_grad()
            fake = G(torch.randn(len(x), 4))
            (softplus(-D(x)).mean() + softplus(D(fake)).mean()).backward()
            opt_d.step()

        z = torch.randn(len(x), 4)
        opt_info.zero_grad()
        mse_loss(Q(G(z)), z).backward()
        opt_info.step()

        opt_g.zero_grad()
        scores = D(G(z))
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        softplus(-scores).mean().backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
