"""A critic and a generator of a few weights, for 64x64 images, with two maps each."""

from torch import nn


class Generator(nn.Module):
    def __init__(self, z_dim):
        super().__init__()
        self.base = nn.Linear(z_dim, 2 * 8 * 8)
        self.image = nn.ConvTranspose2d(2, 3, 8, 8)

    def forward(self, z):
        base = self.base(z).relu().view(-1, 2, 8, 8)
        return self.image(base).tanh(), base, base


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, 8)
        self.score = nn.Linear(2 * 8 * 8, 1)

    def forward(self, images):
        features = nn.functional.leaky_relu(self.features(images), 0.1)
        scores = self.score(features.flatten(1))
        return scores.squeeze(), features.flatten(2), features.flatten(2)
