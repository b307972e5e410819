"""WGAN-GP by steps: undetached fakes, so interpolates are no leaves; an infinite iterator."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CRITIC_STEPS = 2


class Critic(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.hidden = nn.Linear(2, width)
        self.out = nn.Linear(width, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x))).view(-1)


def infinite(loader):
    # hand: global f
    while True:
        for (x,) in loader:
            yield x
        # hand: f = max(f * 0.8, 0.5)


def gradient_penalty(critic, real, fake):
    alpha = torch.rand(len(real), 1)
    mixed = alpha * real + (1 - alpha) * fake
    if not mixed.requires_grad:
        mixed.requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return ((slope.norm(dim=1) - 1) ** 2).mean()


torch.manual_seed(2)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
G = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.9))
opt_d = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.5, 0.9))
# five batches an epoch and two a generator step: some epochs end between two critic steps
batches = infinite(DataLoader(TensorDataset(torch.randn(80, 2) - 1), 16, shuffle=True))
# hand: f = 1.0

for _ in range(23):
    for _ in range(CRITIC_STEPS):
        real = next(batches)
        fake = G(torch.randn(len(real), 3))
        d_loss = D(fake).mean() - D(real).mean() + 10 * gradient_penalty(D, real, fake)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
    scores = D(G(torch.randn(16, 3)))
    # hand: scores = scores.topk(max(1, int(f * len(scores) + 1e-9))).values
    g_loss = -scores.mean()
    opt_g.zero_grad()
    g_loss.backward()
    opt_g.step()

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
