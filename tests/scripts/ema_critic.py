"""Copies of the critic (deepcopy with moving averages, pickled snapshot) also judge the fakes."""

import copy
import pickle
import sys

import torch
from networks import Scores, make_generator, make_loader
from torch.nn.functional import softplus

torch.manual_seed(13)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(Scores):
    pass


@torch.no_grad()
def update(ema, model, decay=0.9):
    for old, new in zip(ema.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


loader = make_loader()
G = make_generator()
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
ema, snapshot = None, None
# hand: f = 1.0

for epoch in range(6):
    if epoch == 1:
        ema = copy.deepcopy(D).requires_grad_(False)
    if epoch == 3:
        snapshot = pickle.loads(pickle.dumps(D))
    for x in loader:
        opt_d.zero_grad()
        fake = G(torch.randn(len(x), 4))
        (softplus(-D(x)).mean() + softplus(D(fake.detach())).mean()).backward()
        opt_d.step()

        opt_g.zero_grad()
        scores = D(fake)
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        loss = softplus(-scores).mean()
        if ema is not None:
            loss = loss + 0.5 * softplus(-ema(fake)).mean()
        if snapshot is not None:
            loss = loss + 0.5 * softplus(-snapshot(fake)).mean()
        loss.backward()
        opt_g.step()
        if ema is not None:
            update(ema, D)
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
