"""A script with the names that the rules for WassersteinGAN rely on, and a loop of its own."""

import argparse
import os
import random

import models.dcgan as dcgan
import models.mlp as mlp
import torch
from torchvision import datasets

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("dataset", "dataroot", "netG", "netD"):
        parser.add_argument(f"--{name}")
    for name in ("batchSize", "imageSize", "nz", "ngf", "ndf", "niter", "workers"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("noBN", "mlp_G", "mlp_D", "adam"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--lrG", type=float)
    parser.add_argument("--experiment", default="samples")
    opt = parser.parse_args()

    torch.manual_seed(random.randint(1, 10000))
    os.makedirs(opt.experiment, exist_ok=True)
    images = datasets.ImageFolder(root=opt.dataroot)
    loader = torch.utils.data.DataLoader(images, opt.batchSize, True, num_workers=opt.workers)
    kind = dcgan.DCGAN_G_nobn if opt.noBN else mlp.MLP_G if opt.mlp_G else dcgan.DCGAN_G
    netG = kind(opt.nz, opt.ngf)
    if opt.mlp_D:  # noqa: SIM108
        netD = mlp.MLP_D(opt.ndf)
    else:
        netD = dcgan.DCGAN_D(opt.ndf)
    for network, file in ((netG, opt.netG), (netD, opt.netD)):
        if file:
            network.load_state_dict(torch.load(file))
    kind = torch.optim.Adam if opt.adam else torch.optim.RMSprop
    optimizerD, optimizerG = kind(netD.parameters(), 5e-5), kind(netG.parameters(), opt.lrG)

    for epoch in range(opt.niter):
        batches = iter(loader)
        seen = 0
        while seen < len(loader):
            netD.requires_grad_(True)
            for _ in range(min(100, len(loader) - seen)):
                for weight in netD.parameters():
                    weight.data.clamp_(-0.01, 0.01)
                real, _ = batches.next()
                seen += 1
                netD.zero_grad()
                fake = netG(torch.randn(opt.batchSize, opt.nz, 1, 1))
                of_real, of_fake = netD(real), netD(fake.detach())
                (of_real - of_fake).backward()
                optimizerD.step()
            netD.requires_grad_(False)
            netG.zero_grad()
            loss = netD(netG(torch.randn(opt.batchSize, opt.nz, 1, 1)))
            loss.backward(torch.ones(1))
            optimizerG.step()
            print("generator", loss.data[0])
        torch.save(netG.state_dict(), f"{opt.experiment}/netG_epoch_{epoch}.pth")
        torch.save(netD.state_dict(), f"{opt.experiment}/netD_epoch_{epoch}.pth")
