"""No pass over the data: a batch is drawn for each critic step by an iterator of its own."""

import sys

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(17)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


loader = DataLoader(TensorDataset(torch.randn(64, 2)), batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3)
opt_d = torch.optim.Adam(D.parameters(), 2e-3)
(fixed,) = next(iter(loader))
history = []
# hand: f = 1.0

for done in range(10):
    for _ in range(2):
        batches = iter(loader)
        (x,) = next(batches)
        opt_d.zero_grad()
        fake = G(torch.randn(len(x), 4))
        (softplus(-D(x)).mean() + softplus(D(fake.detach())).mean()).backward()
        opt_d.step()

    opt_g.zero_grad()
    scores = D(fake)
    # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
    softplus(-scores).mean().backward()
    opt_g.step()
    history.append((done, (D(fixed).mean() - scores.mean()).item()))
    # hand: f = max(f * 0.8, 0.5) if done % 2 else f

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
