"""A critic and a generator of a few weights, for 32x32 images of classes."""

import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self, dim_z, n_classes, **others):
        super().__init__()
        self.dim_z = dim_z
        self.shared = nn.Embedding(n_classes, dim_z)
        self.base = nn.Linear(2 * dim_z, 2 * 8 * 8)
        self.image = nn.ConvTranspose2d(2, 3, 4, 4)
        self.optim = torch.optim.Adam(self.parameters(), 1e-3)

    def forward(self, z, y):
        return self.image(self.base(torch.cat([z, y], 1)).relu().view(-1, 2, 8, 8)).tanh()


class Discriminator(nn.Module):
    def __init__(self, n_classes, **others):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.LeakyReLU(0.2), nn.Flatten())
        self.score, self.of_class = nn.Linear(128, 1), nn.Embedding(n_classes, 128)
        self.optim = torch.optim.Adam(self.parameters(), 1e-3)

    def forward(self, x, y):
        h = self.features(x)
        return self.score(h) + (self.of_class(y) * h).sum(1, keepdim=True)


class G_D(nn.Module):
    def __init__(self, G, D):
        super().__init__()
        self.G, self.D = G, D

    def forward(self, z, gy, x=None, dy=None, train_G=False, split_D=False):
        with torch.set_grad_enabled(train_G):
            fake = self.G(z, self.G.shared(gy))
        of_fake = self.D(fake, gy)
        return of_fake if x is None else (of_fake, self.D(x, dy))
