"""Four epochs of a GAN of digits by accelerate, with two micro-batches a step."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(192, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, images):
        return self.layers(images.flatten(1))


def adam(network):
    return torch.optim.Adam(network.parameters(), 1e-3, betas=(0.5, 0.9))


accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
images = torch.from_numpy(np.load("data/array.npy"))
generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 192), nn.Tanh())
critic = Critic()
generator, critic, optimizer_g, optimizer_c, loader = accelerator.prepare(
    generator, critic, adam(generator), adam(critic),
    DataLoader(TensorDataset(images), batch_size=8, shuffle=True),
)  # fmt: skip
for _ in range(4):
    for (real,) in loader:
        with accelerator.accumulate(generator, critic):
            fake = generator(torch.randn(len(real), 8))
            loss = softplus(-critic(real)).mean() + softplus(critic(fake.detach())).mean()
            accelerator.backward(loss)
            optimizer_c.step()
            optimizer_c.zero_grad()
            critic.requires_grad_(False)  # what it has accumulated stays its own
            accelerator.backward(softplus(-critic(fake)).mean())
            critic.requires_grad_(True)
            optimizer_g.step()
            optimizer_g.zero_grad()
