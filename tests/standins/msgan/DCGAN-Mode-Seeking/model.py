"""A conditional GAN of a few weights, with two samples a label, for 32x32 images."""

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 10


class Generator(nn.Module):
    def __init__(self, nz):
        super().__init__()
        self.deconv1 = nn.ConvTranspose2d(nz + CLASSES, 4, 8, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 4))

    def forward(self, z, label):
        return self.rest(self.deconv1(torch.cat([z, label], 1)[:, :, None, None])).tanh()


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        features = nn.Conv2d(3, 4, 4, 4, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)
        self.features = nn.Sequential(*features, nn.Flatten())
        self.score = nn.Linear(4 * 8 * 8 + CLASSES, 1)

    def forward(self, images, label):
        return self.score(torch.cat([self.features(images), label], 1)).sigmoid()


class CDCGAN(nn.Module):
    def __init__(self, opts):
        super().__init__()
        self.nz, self.G, self.D = opts.nz, Generator(opts.nz), Discriminator()
        self.gen_opt = torch.optim.Adam(self.G.parameters(), 1e-3)
        self.dis_opt = torch.optim.Adam(self.D.parameters(), 1e-3)

    def setgpu(self, gpu):
        self.gpu = gpu
        self.D.cuda(self.gpu)
        self.G.cuda(self.gpu)

    def get_z_random(self, batchSize, nz):
        return torch.cuda.FloatTensor(batchSize, nz).normal_()

    def update(self, real, labels):
        one_hot = F.one_hot(labels, CLASSES).to(real.dtype)
        z1, z2 = (self.get_z_random(len(real), self.nz) for _ in range(2))
        fake1, fake2 = self.G(torch.cat([z1, z2]), one_hot.repeat(2, 1)).chunk(2)
        self.dis_opt.zero_grad()
        of_real = self.D(real, one_hot)
        loss = 2 * F.binary_cross_entropy(of_real, torch.ones_like(of_real))
        for fake in (fake1, fake2):
            of_fake = self.D(fake.detach(), one_hot)
            loss = loss + F.binary_cross_entropy(of_fake, torch.zeros_like(of_fake))
        loss.backward()
        self.dis_opt.step()
        self.gen_opt.zero_grad()
        loss = sum(self.backward_G(self.D, fake, one_hot) for fake in (fake1, fake2))
        (loss + (z2 - z1).abs().mean() / ((fake2 - fake1).abs().mean() + 1e-5)).backward()
        self.gen_opt.step()

    def backward_G(self, netD, fake, label):
        scores = netD.forward(fake, label)
        return F.binary_cross_entropy(scores, torch.ones_like(scores).cuda(self.gpu))

    def parts(self):
        return {"dis": self.D, "gen": self.G, "dis_opt": self.dis_opt, "gen_opt": self.gen_opt}

    def resume(self, file):
        saved = torch.load(file)
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])
        return saved["ep"], saved["total_it"]

    def save(self, file, ep, total_it):
        states = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save(states | {"ep": ep, "total_it": total_it}, file)
