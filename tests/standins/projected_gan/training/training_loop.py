"""A loop that counts images, with the names that the rules for Projected GAN rely on."""

import os
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from training.loss import ProjectedGANLoss


class Collector:
    def update(self):
        print("tick")


class Critics(nn.Module):
    """Two of them, which score the patches of two scales: (B, 3, 16, 16) to (B, 16 + 4)."""

    def __init__(self, cout=4):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, cout, 4, 4), nn.LeakyReLU(0.2))
        self.coarse = nn.Sequential(nn.Conv2d(cout, cout, 2, 2), nn.LeakyReLU(0.2))
        self.of_fine, self.of_coarse = nn.Conv2d(cout, 1, 1), nn.Conv2d(cout, 1, 1)

    def forward(self, images):
        fine = self.fine(images)
        coarse = self.coarse(fine)
        return torch.cat([self.of_fine(fine).flatten(1), self.of_coarse(coarse).flatten(1)], 1)


class Networks:
    def __init__(self):
        base = nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Unflatten(1, (4, 4, 4))
        self.G = nn.Sequential(*base, nn.ConvTranspose2d(4, 3, 4, 4))
        self.D = Critics()


def endless(images, batch_size):
    while True:
        for rows in torch.randperm(len(images)).split(batch_size):
            yield images[rows]


def training_loop(run_dir, data, batch_size, batch_gpu, total_kimg, resume, restart_every):
    torch.manual_seed(0)
    files = sorted(Path(data).iterdir())
    training_set = [np.asarray(Image.open(file)).transpose(2, 0, 1) / 127.5 - 1 for file in files]
    images = torch.as_tensor(np.stack(training_set), dtype=torch.get_default_dtype())
    networks, cur_nimg = Networks(), 0
    snapshot = Path(run_dir, "network-snapshot.pkl")
    if restart_every and snapshot.is_file():
        networks, cur_nimg = pickle.loads(snapshot.read_bytes())
    elif resume:
        networks, _ = pickle.loads(Path(resume).read_bytes())
    G, D = (network.requires_grad_(False) for network in (networks.G, networks.D))
    loss = ProjectedGANLoss(device=torch.device("cpu"), G=G, D=D)
    phases = [(name, net, torch.optim.Adam(net.parameters(), 2e-3, betas=(0.0, 0.99)))
              for name, net in (("Gboth", G), ("Dmain", D), ("Dreg", D))]  # fmt: skip
    batches, stats_collector = endless(images, batch_size), Collector()
    while cur_nimg < total_kimg * 1000:
        real = next(batches)
        for name, network, optimizer in phases:
            optimizer.zero_grad()
            network.requires_grad_(True)
            for real_img in real.split(batch_gpu):
                z = torch.randn(len(real_img), 8)
                loss.accumulate_gradients(phase=name, real_img=real_img, gen_z=z, cur_nimg=cur_nimg)
            network.requires_grad_(False)
            optimizer.step()
        cur_nimg += batch_size
    stats_collector.update()
    os.makedirs(run_dir, exist_ok=True)
    if restart_every:
        snapshot.write_bytes(pickle.dumps((networks, cur_nimg)))
