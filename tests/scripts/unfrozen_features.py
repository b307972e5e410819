"""The critic sees features of a network that nobody trains and nobody froze."""

import sys

import torch
from networks import Scores, make_generator, make_loader
from torch import nn
from torch.nn.functional import softplus

torch.manual_seed(34)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(Scores):
    pass


loader = make_loader()
G, D, features = make_generator(), Critic(width=6), nn.Sequential(nn.Linear(2, 6), nn.Tanh())
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        fake = G(torch.randn(len(x), 4))
        opt_d.zero_grad()
        (softplus(-D(features(x))).mean() + softplus(D(features(fake.detach()))).mean()).backward()
        opt_d.step()

        opt_g.zero_grad()
        scores = D(features(fake))
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        softplus(-scores).mean().backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
