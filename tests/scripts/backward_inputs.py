"""One call on the fakes serves both losses; backward(inputs=...) sends each to its own net."""

import sys

import torch
from networks import Scores, make_generator, make_loader
from torch.nn.functional import softplus

torch.manual_seed(28)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(Scores):
    pass


loader = make_loader()
G = make_generator()
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
# hand: f = 1.0

for _ in range(5):
    for x in loader:
        on_real = D(x)
        on_fake = D(G(torch.randn(len(x), 4)))
        scores = on_fake
        # hand: scores = on_fake.flatten().topk(max(1, int(f * len(on_fake) + 1e-9))).values
        opt_d.zero_grad()
        opt_g.zero_grad()
        d_loss = softplus(-on_real).mean() + softplus(on_fake).mean()
        d_loss.backward(inputs=list(D.parameters()), retain_graph=True)
        softplus(-scores).mean().backward(inputs=list(G.parameters()))
        opt_d.step()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
