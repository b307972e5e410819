"""The last batch of every epoch is smaller: 70 samples in batches of 16 leave 6."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(7)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.LayerNorm(32), nn.Linear(32, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return self.main(x).view(-1)


data = TensorDataset(torch.randn(70, 2), torch.randint(0, 3, (70,)))
loader = DataLoader(data, batch_size=16, shuffle=True, drop_last=False)
G = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
D = Critic()
bce = nn.BCELoss()
opt_d = torch.optim.Adam(D.parameters(), 1e-3)
opt_g = torch.optim.Adam(G.parameters(), 1e-3)
# hand: f = 1.0

for _ in range(5):
    for real, _label in loader:
        B = real.size(0)
        noise = torch.randn(B, 8)
        fake = G(noise)

        opt_d.zero_grad()
        bce(D(real), torch.ones(B)).backward()
        bce(D(fake.detach()), torch.zeros(B)).backward()
        opt_d.step()

        opt_g.zero_grad()
        scores = D(fake)
        # hand: scores = scores.topk(max(1, int(f * B + 1e-9))).values
        bce(scores, torch.ones_like(scores)).backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
