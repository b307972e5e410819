"""Epochs are cut short: the loop over the loader breaks after three of six batches."""

import argparse

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--batches-per-epoch", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(27)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    loader = DataLoader(torch.randn(96, 2) + 1, batch_size=16, shuffle=True)
    G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    D = Critic()
    opt_g = torch.optim.Adam(G.parameters(), 2e-3)
    opt_d = torch.optim.Adam(D.parameters(), 2e-3)
    # hand: f = 1.0
    for _ in range(6):
        for i, x in enumerate(loader, start=1):
            opt_d.zero_grad()
            fake = G(torch.randn(len(x), 4))
            (softplus(-D(x)).mean() + softplus(D(fake.detach())).mean()).backward()
            opt_d.step()

            opt_g.zero_grad()
            scores = D(fake)
            # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
            softplus(-scores).mean().backward()
            opt_g.step()
            if i == args.batches_per_epoch:
                break
        # hand: f = max(f * 0.8, 0.5)
    torch.save({"G": G.state_dict(), "D": D.state_dict()}, args.out)


if __name__ == "__main__":
    main()
