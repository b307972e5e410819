"""A loop that counts images, with the names that the rules for StyleGAN2-ADA rely on."""

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from training.loss import StyleGAN2Loss


class Collector:
    def update(self):
        print("tick")


class Networks:
    """Of a few weights, for 16x16 images."""

    def __init__(self):
        base = nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Unflatten(1, (4, 4, 4))
        self.G = nn.Sequential(*base, nn.ConvTranspose2d(4, 3, 4, 4))
        features = nn.Conv2d(3, 4, 4, 4), nn.LeakyReLU(0.2), nn.Flatten()
        self.D = nn.Sequential(*features, nn.Linear(64, 1))


def endless(images, batch_size):
    while True:
        for rows in torch.randperm(len(images)).split(batch_size):
            yield images[rows]


def training_loop(folder, data, batch_size, total_kimg, resume):
    torch.manual_seed(0)
    files = sorted(Path(data).iterdir())
    training_set = [np.asarray(Image.open(file)).transpose(2, 0, 1) / 127.5 - 1 for file in files]
    images = torch.as_tensor(np.stack(training_set), dtype=torch.get_default_dtype())
    networks = Networks()
    if resume:
        networks = pickle.loads(Path(resume).read_bytes())
    G, D = (network.requires_grad_(False) for network in (networks.G, networks.D))
    mapping, synthesis = G[:2], G[2:]
    loss = StyleGAN2Loss(torch.device("cpu"), G_mapping=mapping, G_synthesis=synthesis, D=D)
    phases = [(f"{name}main", net, torch.optim.Adam(net.parameters(), 2e-3, betas=(0.0, 0.99)))
              for name, net in (("G", G), ("D", D))]  # fmt: skip
    batches, stats_collector = endless(images, batch_size), Collector()
    cur_nimg = 0
    while cur_nimg < total_kimg * 1000:
        real = next(batches)
        for name, network, optimizer in phases:
            optimizer.zero_grad()
            network.requires_grad_(True)
            z = torch.randn(len(real), 8)
            loss.accumulate_gradients(phase=name, real_img=real, gen_z=z)
            network.requires_grad_(False)
            optimizer.step()
        cur_nimg += batch_size
    stats_collector.update()
    os.makedirs(folder)
    Path(folder, "network-snapshot-000000.pkl").write_bytes(pickle.dumps(copy.deepcopy(networks)))
