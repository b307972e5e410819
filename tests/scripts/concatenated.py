"""The critic step judges real and fake in one concatenated batch, fakes not detached."""

import sys

import torch
from torch import nn
from torch.nn.functional import relu
from torch.utils.data import DataLoader

torch.manual_seed(24)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32, bias=False),
            nn.BatchNorm1d(32),
            nn.LeakyReLU(0.2),
            nn.Linear(32, 1),
        )

    def forward(self, x):
        return self.net(x)


loader = DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
opt_g = torch.optim.SGD(G.parameters(), lr=0.05, momentum=0.5)
opt_d = torch.optim.SGD(D.parameters(), lr=0.05, momentum=0.5)
# hand: f = 1.0

for _ in range(5):
    for real in loader:
        opt_d.zero_grad()
        both = torch.cat([real, G(torch.randn(len(real), 4))])
        on_real, on_fake = D(both).chunk(2)
        (relu(1 - on_real).mean() + relu(1 + on_fake).mean()).backward()
        opt_d.step()

        opt_g.zero_grad()
        both = torch.cat([real, G(torch.randn(len(real), 4))])
        scores = D(both[len(real) :])
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        (-scores).mean().backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
