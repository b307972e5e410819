"""A two-phase optimizer that zeroes gradients and calls its closure inside its step."""

import sys

import torch
from networks import Scores, make_generator, make_loader
from torch.nn.functional import softplus

torch.manual_seed(31)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(Scores):
    pass


loader = make_loader()


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05):
        super().__init__(params, {"rho": rho})
        self.base = base

    @torch.no_grad()
    def step(self, closure):
        moves = []
        for p in self.param_groups[0]["params"]:
            moves.append(self.param_groups[0]["rho"] * p.grad)
            p.add_(moves[-1])
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, move in zip(self.param_groups[0]["params"], moves, strict=True):
            p.sub_(move)
        self.base.step()
        self.zero_grad()


G, D = make_generator(), Critic()
opt_g = SAM(G.parameters(), torch.optim.SGD(G.parameters(), 0.1))
opt_d = torch.optim.SGD(D.parameters(), 0.1)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        opt_d.zero_grad()
        z = torch.randn(len(x), 4)
        (softplus(-D(x)).mean() + softplus(D(G(z).detach())).mean()).backward()
        opt_d.step()

        def closure(z=z):
            scores = D(G(z))
            # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
            softplus(-scores).mean().backward()

        opt_g.zero_grad()
        closure()
        opt_g.step(closure)
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
