"""One function calls the critic for both steps, one line for reals, fakes and the generator."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

torch.manual_seed(18)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.GroupNorm(4, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
optimizers = {name: torch.optim.Adam(net.parameters(), 2e-3) for name, net in (("G", G), ("D", D))}


def scores(x):
    return D(x).squeeze(1)


def step(name, loss):
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    loss.backward()
    optimizers[name].step()


# hand: f = 1.0
for _ in range(5):
    for real in DataLoader(torch.randn(64, 2) + 1, batch_size=16):
        fake = G(torch.randn(len(real), 4))
        step("D", softplus(-scores(real)).mean() + softplus(scores(fake)).mean())
        judged = scores(G(torch.randn(len(real), 4)))
        # hand: judged = judged.topk(max(1, int(f * len(judged) + 1e-9))).values
        step("G", softplus(-judged).mean())
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
