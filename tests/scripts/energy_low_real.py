"""An energy model as critic: low energy is real. A statistics net keeps the entropy up."""

import sys

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import DataLoader

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
Z = 4


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x).squeeze(1)


def train_energy(E, G, optimizer, x):
    optimizer.zero_grad()
    x_fake = G(torch.randn(len(x), Z)).detach()
    data = x.clone().requires_grad_(True)
    score = torch.autograd.grad(E(data).sum(), data, create_graph=True)[0]
    (E(x).mean() - E(x_fake).mean() + 0.1 * score.norm(dim=1).pow(2).mean()).backward()
    optimizer.step()


def train_generator(E, G, H, optimizer_g, optimizer_h, x):
    optimizer_g.zero_grad()
    optimizer_h.zero_grad()
    z = torch.randn(len(x), Z)
    x_fake = G(z)
    energy = E(x_fake)
    # hand: energy = energy.topk(max(1, int(f * len(energy) + 1e-9)), largest=False).values
    shuffled = z[torch.randperm(len(z))]
    pairs = torch.cat([torch.cat([x_fake, z], 1), torch.cat([x_fake, shuffled], 1)])
    labels = torch.cat([torch.ones(len(z)), torch.zeros(len(z))])
    mutual = bce(H(pairs).squeeze(1), labels)
    (energy.mean() + mutual).backward()
    optimizer_g.step()
    optimizer_h.step()


# hand: f = 1.0
if __name__ == "__main__":
    torch.manual_seed(4)
    E = Critic()
    G = nn.Sequential(nn.Linear(Z, 32), nn.ReLU(), nn.Linear(32, 2))
    H = nn.Sequential(nn.Linear(2 + Z, 16), nn.ReLU(), nn.Linear(16, 1))
    opt_e, opt_g, opt_h = (torch.optim.Adam(n.parameters(), 2e-3, (0.5, 0.9)) for n in (E, G, H))
    loader = DataLoader(torch.randn(64, 2) * 0.5 + 1, batch_size=16, shuffle=True)
    for _ in range(5):
        for x in loader:
            train_energy(E, G, opt_e, x)
            train_generator(E, G, H, opt_g, opt_h, x)
        # hand: f = max(f * 0.8, 0.5)
    torch.save({"G": G.state_dict(), "D": E.state_dict()}, sys.argv[1])
