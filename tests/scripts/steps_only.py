"""No loader and no epoch: batches are drawn on the spot, training is counted in steps."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus

torch.manual_seed(26)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
MODES = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


def sample_real(n):
    return MODES[torch.randint(0, 4, (n,))] + 0.05 * torch.randn(n, 2)


G = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), 1e-3)
opt_d = torch.optim.Adam(D.parameters(), 1e-3)
# hand: f = 1.0

for step in range(1, 24):
    fake = G(torch.randn(16, 2))
    opt_d.zero_grad()
    (softplus(-D(sample_real(16))).mean() + softplus(D(fake.detach())).mean()).backward()
    opt_d.step()

    fake = G(torch.randn(16, 2))
    opt_g.zero_grad()
    scores = D(fake)
    # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
    softplus(-scores).mean().backward()
    opt_g.step()
    if step % 10 == 0:
        print(f"step {step}: score of fakes {scores.mean().item():.3f}")
    # hand: f = max(f * 0.8, 0.5) if step % 5 == 0 else f

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
