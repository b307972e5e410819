"""Un-detached fakes over two critic backwards; gradients are zeroed in place."""

import sys

import torch
from networks import Scores, make_generator, make_loader
from torch.nn.functional import softplus

torch.manual_seed(35)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(Scores):
    pass


loader = make_loader()
G, D = make_generator(), Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
# hand: f = 1.0

for _ in range(5):
    for i, x in enumerate(loader):
        (softplus(-D(x)).mean() + softplus(D(G(torch.randn(len(x), 4)))).mean()).backward()
        if i % 2:
            opt_d.step()
            opt_d.zero_grad(set_to_none=False)

        opt_g.zero_grad(set_to_none=False)
        D.requires_grad_(False)
        scores = D(G(torch.randn(len(x), 4)))
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        softplus(-scores).mean().backward()
        D.requires_grad_(True)
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
