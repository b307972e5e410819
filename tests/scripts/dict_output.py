"""A class-conditional critic that returns a dict; its class head trains the generator as well."""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(22)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2))
        self.linear, self.classes = nn.Linear(32, 1), nn.Linear(32, 3)
        self.embedding = nn.Embedding(3, 32)

    def forward(self, x, label):
        h = self.trunk(x)
        adv = self.linear(h).squeeze(1) + (self.embedding(label) * h).sum(1)
        return {"h": h, "cls_output": self.classes(h), "label": label, "adv_output": adv}


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4 + 3, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, z, label):
        return self.net(torch.cat([z, F.one_hot(label, 3).to(z)], 1))


label = torch.randint(0, 3, (64,))
points = torch.randn(64, 2) * 0.3 + torch.eye(3)[label][:, :2]
loader = DataLoader(TensorDataset(points, label), batch_size=16, shuffle=True)
G, D = Generator(), Critic()
opt_g = torch.optim.Adam(G.parameters(), 2e-3, (0.5, 0.999))
opt_d = torch.optim.Adam(D.parameters(), 2e-3, (0.5, 0.999))
# hand: f = 1.0

for _ in range(5):
    for x, y in loader:
        opt_d.zero_grad()
        fake = G(torch.randn(len(x), 4), y).detach()
        real_dict, fake_dict = D(x, y), D(fake, label=y)
        adv_real, adv_fake = real_dict["adv_output"], fake_dict["adv_output"]
        loss = F.relu(1 - adv_real).mean() + F.relu(1 + adv_fake).mean()
        (loss + F.cross_entropy(real_dict["cls_output"], y)).backward()
        opt_d.step()

        opt_g.zero_grad()
        fake_dict = D(G(torch.randn(len(x), 4), y), label=y)
        adv = fake_dict["adv_output"]
        # hand: adv = adv.topk(max(1, int(f * len(adv) + 1e-9))).values
        (F.cross_entropy(fake_dict["cls_output"], y) - adv.mean()).backward()
        opt_g.step()
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
