"""A loader with a persistent worker: every epoch gets the same iterator object, reset."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Points(Dataset):
    def __init__(self, n):
        self.points = torch.randn(n, 2) + 1

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i]


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


def main(out):
    torch.manual_seed(14)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    loader = DataLoader(Points(64), 16, shuffle=True, num_workers=1, persistent_workers=True)
    G, D = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)), Critic()
    opt_g = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.9))
    opt_d = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.5, 0.9))
    # hand: f = 1.0
    for _ in range(5):
        for x in loader:
            fake = G(torch.randn(x.shape[0], 4))
            d_loss = torch.relu(1 - D(x)).mean() + torch.relu(1 + D(fake)).mean()
            opt_d.zero_grad()
            d_loss.backward(retain_graph=True)
            opt_d.step()

            scores = D(fake)
            # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
            g_loss = -scores.mean()
            opt_g.zero_grad()
            g_loss.backward()
            opt_g.step()
        # hand: f = max(f * 0.8, 0.5)
    torch.save({"G": G.state_dict(), "D": D.state_dict()}, out)


if __name__ == "__main__":
    main(sys.argv[1])
