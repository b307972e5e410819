"""The critic returns (score, features); features of all rows enter the generator's loss as well."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(8)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.1), nn.Linear(32, 16))
        self.score = nn.Linear(16, 1)

    def forward(self, x):
        features = torch.tanh(self.features(x))
        return self.score(features), features


class Trainer:
    def __init__(self):
        self.G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.D = Critic()
        self.g_opt = torch.optim.Adam(self.G.parameters(), lr=2e-3, betas=(0.5, 0.999))
        self.d_opt = torch.optim.Adam(self.D.parameters(), lr=2e-3, betas=(0.5, 0.999))
        self.loader = DataLoader(torch.randn(64, 2) * 0.3 + 1.5, batch_size=16, shuffle=True)

    def critic_step(self, x):
        fake = self.G(torch.randn(len(x), 4))
        d_real, _ = self.D(x)
        d_fake, _ = self.D(fake)
        loss = torch.relu(1 - d_real).mean() + torch.relu(1 + d_fake).mean()
        self.reset_grad()
        loss.backward()
        self.d_opt.step()

    def generator_step(self, x):
        _, wanted = self.D(x)
        scores, features = self.D(self.G(torch.randn(len(x), 4)))
        # hand: scores = scores.flatten().topk(max(1, int(f * len(scores) + 1e-9))).values
        matching = (features.mean(0) - wanted.mean(0).detach()).abs().sum()
        self.reset_grad()
        (-scores.mean() + 0.5 * matching).backward()
        self.g_opt.step()

    def reset_grad(self):
        self.g_opt.zero_grad()
        self.d_opt.zero_grad()

    def train(self, epochs):
        # hand: global f
        for _ in range(epochs):
            for x in self.loader:
                self.critic_step(x)
                self.generator_step(x)
            # hand: f = max(f * 0.8, 0.5)


# hand: f = 1.0
trainer = Trainer()
trainer.train(5)
torch.save({"G": trainer.G.state_dict(), "D": trainer.D.state_dict()}, sys.argv[1])
