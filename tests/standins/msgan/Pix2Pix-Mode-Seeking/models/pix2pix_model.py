"""A model of a few weights that makes one half of an image of the other, in two ways."""

import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, 1, 1))

    def forward(self, image, z):
        return self.layers(torch.cat([image, z], 1)).tanh()


class Discriminator(nn.Module):
    """Two maps of scores, of an image and of a smaller one."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(6, 1, 4, 4) for _ in range(2))

    def forward(self, pair):
        large, small = self.maps
        return [large(pair), small(F.avg_pool2d(pair, 2))]


class Pix2PixModel:
    def initialize(self, opt):
        self.opt = opt
        self.folder = Path("models", opt.name)
        self.netG, self.netD = Generator(), Discriminator()
        self.optimizer_G = torch.optim.Adam(self.netG.parameters(), 1e-3)
        self.optimizer_D = torch.optim.Adam(self.netD.parameters(), 1e-3)
        if opt.continue_train:
            for name, net in self.nets().items():
                state = torch.load(self.folder / f"latest_net_{name}.pth")
                del state._metadata
                net.load_state_dict(state)

    def nets(self):
        return {"G": self.netG, "D": self.netD}

    def criterionGAN(self, maps, real):
        losses = [F.mse_loss(one, torch.full_like(one, float(real))) for one in maps]
        return sum(losses), losses

    def backward_G_GAN(self, fake, netD, ll=0.0):
        loss, _ = self.criterionGAN(netD(fake), True)
        return loss * ll

    def optimize_parameters(self, image, real):
        z1, z2 = torch.randn(2, len(image), 1, *image.shape[2:])
        fake1, fake2 = self.netG(image, z1), self.netG(image, z2)
        pairs = [torch.cat([image, fake], 1) for fake in (fake1, fake2)]
        self.netD.requires_grad_(False)
        self.optimizer_G.zero_grad()
        loss = sum(self.backward_G_GAN(pair, self.netD, 1.0) for pair in pairs)
        loss = loss + 10 * F.l1_loss(fake1, real)
        (loss + (z2 - z1).abs().mean() / ((fake2 - fake1).abs().mean() + 1e-5)).backward()
        self.optimizer_G.step()
        self.netD.requires_grad_(True)
        self.optimizer_D.zero_grad()
        loss = self.criterionGAN(self.netD(torch.cat([image, real], 1)), True)[0] * 2
        for pair in pairs:
            loss = loss + self.criterionGAN(self.netD(pair.detach()), False)[0]
        loss.backward()
        self.optimizer_D.step()

    def save_networks(self, epoch):
        os.makedirs(self.folder, exist_ok=True)
        for name, net in self.nets().items():
            torch.save(net.state_dict(), self.folder / f"{epoch}_net_{name}.pth")

    def update_learning_rate(self):
        print("learning rate 0.001")
