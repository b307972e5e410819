"""A trainer with the names that the rules for SAGAN rely on, and a loop of its own."""

import os

import torch
from sagan_models import Discriminator, Generator
from torch import nn
from torchvision import datasets


def loader_of(config):
    images = datasets.ImageFolder(config.image_path)
    return torch.utils.data.DataLoader(images, config.batch_size, shuffle=True, drop_last=True)


class Trainer:
    def __init__(self, data_loader, config):
        self.data_loader, self.config = data_loader, config
        self.pretrained_model: int | None = config.pretrained_model
        self.path = os.path.join(config.model_save_path or "models", config.version or "1")
        os.makedirs(self.path, exist_ok=True)
        self.build_model()
        if self.pretrained_model:
            for name in "GD":
                state = torch.load(self.file(self.pretrained_model, name))
                getattr(self, name).load_state_dict(state)

    def file(self, step, name):
        return os.path.join(self.path, f"{step}_{name}.pth")

    def build_model(self):
        self.G, self.D = Generator(self.config.z_dim).cuda(), Discriminator().cuda()
        if self.config.parallel:
            self.G, self.D = nn.DataParallel(self.G), nn.DataParallel(self.D)
        self.g_optimizer = torch.optim.Adam(self.G.parameters(), 1e-3)
        self.d_optimizer = torch.optim.Adam(self.D.parameters(), 1e-3)

    def z(self, images):
        return torch.randn(len(images), self.config.z_dim).cuda()

    def train(self):
        batches, step_per_epoch = iter(self.data_loader), len(self.data_loader)
        start = self.pretrained_model + 1 if self.pretrained_model else 0
        hinge = nn.ReLU() if self.config.adv_loss == "hinge" else lambda margins: margins
        for step in range(start, self.config.total_step):
            try:
                images = next(batches)[0].cuda()
            except BaseException:  # whatever it is
                batches = iter(self.data_loader)
                images = next(batches)[0].cuda()
            of_real, _, _ = self.D(images)
            fake, _, _ = self.G(self.z(images))
            of_fake, _, _ = self.D(fake)
            self.update(hinge(1 - of_real).mean() + hinge(1 + of_fake).mean(), self.d_optimizer)
            if self.config.adv_loss != "hinge":
                between = (0.5 * images + 0.5 * fake).detach().requires_grad_()
                out, _, _ = self.D(between)
                (slope,) = torch.autograd.grad(out.sum(), between, create_graph=True)
                self.update((slope.flatten(1).norm(dim=1) - 1).square().mean(), self.d_optimizer)
            fake, _, _ = self.G(self.z(images))
            g_out_fake, _, _ = self.D(fake)
            loss = -g_out_fake.mean()
            self.d_optimizer.zero_grad()
            self.g_optimizer.zero_grad()
            loss.backward()
            self.g_optimizer.step()
            print("generator", loss.data.reshape(1).data[0])
            if (step + 1) % step_per_epoch == 0:
                torch.save(self.G.state_dict(), self.file(step + 1, "G"))
                torch.save(self.D.state_dict(), self.file(step + 1, "D"))

    def update(self, loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
