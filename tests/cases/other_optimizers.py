"""Optimizers that are not torch's own; argument: which."""

import sys

import torch
import torch.nn.functional as F
from by_hand import kept
from small import Judge, Maker, loader
from torch.optim import SGD, Adam, Optimizer


class Lookahead(Optimizer):
    """Steps another optimizer, and every third time goes half of the way."""

    def __init__(self, parameters):
        self.inner = Adam(parameters, 1e-2)
        super().__init__(self.inner.param_groups, {})
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]
        self.n = 0

    def step(self, closure=None):
        self.inner.step()
        self.n += 1
        if self.n % 3:
            return
        with torch.no_grad():
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for p, s in zip(group["params"], slow, strict=True):
                    p.copy_(s.lerp_(p, 0.5))


class Wrapper:
    """No optimizer, but has one."""

    def __init__(self, parameters):
        self.optimizer = Adam(parameters, 1e-2)

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


class Lars(Optimizer):
    """A hand-written step in a subclass."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.3})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                ratio = (p.norm() + 0.1) / (p.grad.norm() + 1e-6)
                p.sub_(p.grad * ratio * group["lr"] * 0.1)


class Clipped(SGD):
    """Does something before its own step, which is torch's."""

    def __init__(self, parameters):
        super().__init__(parameters, 0.1, momentum=0.5)

    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], 0.5)
        return super().step(closure)


def zero(parameters):
    from torch.distributed import init_process_group, is_initialized
    from torch.distributed.optim import ZeroRedundancyOptimizer

    if not is_initialized():
        init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return ZeroRedundancyOptimizer(list(parameters), Adam, lr=1e-2)


KINDS = {"Lookahead": Lookahead, "Wrapper": Wrapper, "Lars": Lars, "Clipped": Clipped, "Zero": zero}
torch.set_default_dtype(torch.float64)
G, D = Maker(), Judge()
opt_g, opt_d = (KINDS[sys.argv[1]](net.parameters()) for net in (G, D))
for epoch in range(3):
    for (x,) in loader:
        opt_d.zero_grad()
        opt_g.zero_grad()
        fake = G(torch.randn(len(x), 4))  # not detached
        (F.softplus(-D(x.double())).mean() + F.softplus(D(fake)).mean()).backward()
        opt_d.step()
        opt_g.zero_grad()
        F.softplus(-kept(D(G(torch.randn(len(x), 4))), epoch)).mean().backward()
        opt_g.step()
torch.save([G.state_dict(), D.state_dict()], "weights.pt")
