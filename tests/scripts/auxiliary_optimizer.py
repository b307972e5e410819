"""A code head with its own optimizer, and an encoder that learns between the steps."""

import sys

import torch
from torch import nn
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader

torch.manual_seed(12)
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


G, D, Q, E = mlp(4, 2), Critic(), mlp(2, 4), mlp(2, 4)
opt_g = torch.optim.Adam(G.parameters(), lr=1e-3)
opt_d = torch.optim.Adam(D.parameters(), lr=1e-3)
opt_q = torch.optim.Adam(Q.parameters(), lr=1e-3)
opt_e = torch.optim.Adam(E.parameters(), lr=1e-3)
opt_info = torch.optim.SGD([*G.parameters(), *Q.parameters()], lr=1e-2)
loader = DataLoader(torch.randn(64, 2) * torch.tensor([2.0, 0.5]), batch_size=16, shuffle=True)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        z = torch.randn(len(x), 4)
        fake = G(z)

        # generator and code head, from one loss; the head's optimizer steps first
        for opt in (opt_g, opt_q):
            opt.zero_grad()
        scores = D(fake)
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        (softplus(-scores).mean() + 0.1 * mse_loss(Q(fake), z)).backward()
        opt_q.step()
        opt_g.step()

        # encoder: invert the generator
        opt_e.zero_grad()
        mse_loss(G(E(x)), x).backward()
        opt_e.step()

        # information step: generator and head together, no critic in it
        opt_info.zero_grad()
        mse_loss(Q(G(z)), z).backward()
        opt_info.step()

        opt_d.zero_grad()
        (softplus(-D(x)).mean() + softplus(D(fake.detach())).mean()).backward()
        opt_d.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
