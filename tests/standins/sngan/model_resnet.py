"""A critic and a generator of a few weights, for 32x32 images."""

from torch import nn


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.LeakyReLU(0.2), nn.Flatten())
        self.score = nn.Linear(2 * 8 * 8, 1)

    def forward(self, images):
        return self.score(self.features(images))


class Generator(nn.Module):
    def __init__(self, z_dim):
        super().__init__()
        self.base = nn.Linear(z_dim, 2 * 8 * 8)
        self.image = nn.ConvTranspose2d(2, 3, 4, 4)

    def forward(self, z):
        return self.image(self.base(z).relu().view(-1, 2, 8, 8)).tanh()
