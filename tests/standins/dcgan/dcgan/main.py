"""A script with the names that the rules for DCGAN rely on, and a loop of its own."""

import argparse
import os

import torch
from torch import nn
from torchvision import datasets

parser = argparse.ArgumentParser()
parser.add_argument("--dataset")
parser.add_argument("--dataroot")
parser.add_argument("--outf", default=".")
parser.add_argument("--netG")
parser.add_argument("--netD")
for name in ("batchSize", "imageSize", "nz", "ngf", "ndf", "niter", "workers", "manualSeed"):
    parser.add_argument(f"--{name}", type=int, default=2)
opt = parser.parse_args()

torch.manual_seed(opt.manualSeed)
os.makedirs(opt.outf, exist_ok=True)
images = datasets.ImageFolder(root=opt.dataroot)
loader = torch.utils.data.DataLoader(images, opt.batchSize, True, num_workers=opt.workers)


def init(module):
    for weight in module.parameters(recurse=False):
        nn.init.normal_(weight, 0, 0.1)


def go_on(network, file):
    if file:
        network.load_state_dict(torch.load(file))


netG = nn.Sequential(
    nn.Linear(4, 2 * 8 * 8), nn.ReLU(), nn.Unflatten(1, (2, 8, 8)), nn.ConvTranspose2d(2, 3, 8, 8)
)
netG.apply(init)
go_on(netG, opt.netG)
netD = nn.Sequential(
    nn.Conv2d(3, 2, 16, 16), nn.LeakyReLU(), nn.Flatten(), nn.Linear(32, 1), nn.Sigmoid()
)
netD.apply(init)
go_on(netD, opt.netD)
loss = nn.BCELoss()
of_critic = torch.optim.Adam(netD.parameters(), 1e-2)
of_generator = torch.optim.Adam(netG.parameters(), 1e-2)

for epoch in range(opt.niter):
    for real, _ in loader:
        ones = torch.ones(len(real), 1)
        of_critic.zero_grad()
        loss(netD(real), ones).backward()
        fake = netG(torch.randn(len(real), 4))
        loss(netD(fake.detach()), 0 * ones).backward()
        of_critic.step()
        of_generator.zero_grad()
        loss(netD(fake), ones).backward()
        of_generator.step()
    torch.save(netG.state_dict(), f"{opt.outf}/netG_epoch_{epoch}.pth")
    torch.save(netD.state_dict(), f"{opt.outf}/netD_epoch_{epoch}.pth")
