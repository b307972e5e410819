import argparse

import torch
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from . import nets

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

torch.manual_seed(25)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
loader = DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
G, D = nets.Generator(), nets.Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
# hand: f = 1.0

for _ in range(args.epochs):
    for x in loader:
        opt_d.zero_grad()
        fake = G(torch.randn(len(x), 4))
        (softplus(-D(x)).mean() + softplus(D(fake.detach())).mean()).backward()
        opt_d.step()

        opt_g.zero_grad()
        scores = D(fake)
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        softplus(-scores).mean().backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, args.out)
