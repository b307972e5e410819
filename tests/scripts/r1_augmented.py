"""R1 on augmented reals: the critic's real input requires grad and is no leaf; 8x8 images."""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 2, 1)
        self.out = nn.Linear(8 * 16, 1)

    def forward(self, x):
        return self.out(F.softplus(self.conv(x)).flatten(1)).squeeze()


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 8 * 16)
        self.up = nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def forward(self, z):
        return torch.sigmoid(self.up(F.relu(self.fc(z)).view(-1, 8, 4, 4)))


def augment(x):
    """Differentiable: brightness, and a mirror image of some rows."""
    x = x + 0.1 * torch.randn(len(x), 1, 1, 1)
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def r1(real, scores):
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()


def train(epochs=5):
    D, G = Critic(), Generator()
    d_opt = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.0, 0.99))
    g_opt = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.0, 0.99))
    loader = DataLoader(torch.rand(60, 1, 8, 8), batch_size=12, shuffle=True)
    # hand: f = 1.0
    for _ in range(epochs):
        for images in loader:
            images.requires_grad_()
            real = augment(images)
            real_scores = D(real)
            fake_scores = D(augment(G(torch.randn(len(images), 5)).detach()))
            loss = F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()
            d_opt.zero_grad()
            (loss + 0.5 * r1(real, real_scores)).backward()
            d_opt.step()

            scores = D(augment(G(torch.randn(len(images), 5))))
            # hand: scores = scores.topk(max(1, int(f * len(scores) + 1e-9))).values
            g_opt.zero_grad()
            F.softplus(-scores).mean().backward()
            g_opt.step()
        # hand: f = max(f * 0.8, 0.5)
    return {"G": G.state_dict(), "D": D.state_dict()}


torch.manual_seed(6)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.save(train(), sys.argv[1])
