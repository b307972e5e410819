"""Both optimizers are given closures: SGD for the critic, L-BFGS (several evaluations) for G."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

torch.manual_seed(10)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x):
        return self.net(x)


loader = DataLoader(torch.randn(64, 2) + 1.0, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2))
D = Critic()
g_opt = torch.optim.LBFGS(G.parameters(), lr=0.003, max_iter=3, history_size=1)
d_opt = torch.optim.SGD(D.parameters(), lr=0.05)
# hand: f = 1.0


def train_on(x):
    z = torch.randn(len(x), 3)

    def critic_closure():
        d_opt.zero_grad()
        loss = softplus(-D(x)).mean() + softplus(D(G(z))).mean()
        loss.backward()
        return loss

    def generator_closure():
        g_opt.zero_grad()
        scores = D(G(z))
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        loss = softplus(-scores).mean()
        loss.backward()
        return loss

    d_opt.step(critic_closure)
    g_opt.step(generator_closure)


for _ in range(5):
    for x in loader:
        train_on(x)
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
