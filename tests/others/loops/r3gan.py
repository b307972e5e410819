"""Four epochs of R3GAN's networks and loss on digits, in the order of its training loop."""

import numpy as np
import torch
from torch.utils.data import DataLoader
from training.loss import R3GANLoss
from training.networks import Discriminator, Generator

images = torch.from_numpy(np.load("data/array.npy"))
shape = {
    "NoiseDimension": 8, "WidthPerStage": [16, 16, 16], "CardinalityPerStage": [2, 2, 2],
    "BlocksPerStage": [1, 1, 1], "ExpansionFactor": 2, "FP16Stages": [], "c_dim": 0,
    "img_resolution": 16,
}  # fmt: skip
of_critic = {name: value for name, value in shape.items() if name != "NoiseDimension"}
G, D = Generator(**shape).requires_grad_(False), Discriminator(**of_critic).requires_grad_(False)
loss = R3GANLoss(G, D)
phases = [
    (phase, network, torch.optim.Adam(network.parameters(), 1e-3, betas=(0.0, 0.9)))
    for phase, network in (("D", D), ("G", G))
]
for _ in range(4):
    for real in DataLoader(images, batch_size=8, shuffle=True):
        for phase, network, optimizer in phases:
            optimizer.zero_grad(set_to_none=True)
            network.requires_grad_(True)
            loss.accumulate_gradients(phase, real, None, torch.randn(len(real), 8), 1.0, 1)
            network.requires_grad_(False)
            optimizer.step()
