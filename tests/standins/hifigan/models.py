"""A generator and two critics of a few weights, with their losses."""

import torch
from torch import nn
from torch.nn import functional as F


class Generator(nn.Module):
    """Noise over a sound, filtered."""

    def __init__(self, h):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 4, 9, 1, 4), nn.ReLU(), nn.Conv1d(4, 1, 9, 1, 4))

    def forward(self, x):
        return self.layers(torch.cat([x, torch.randn_like(x)], 1)).tanh()


class Discriminator(nn.Module):
    """Scores (B, N) and features of a part of a critic."""

    def __init__(self, stride):
        super().__init__()
        self.first = nn.Conv1d(1, 4, 2 * stride, stride)
        self.last = nn.Conv1d(4, 1, 3, 1, 1)

    def forward(self, sound):
        features = F.leaky_relu(self.first(sound), 0.1)
        scores = self.last(features)
        return scores.flatten(1), [features, scores]


class Several(nn.Module):
    def __init__(self, strides):
        super().__init__()
        self.discriminators = nn.ModuleList(map(Discriminator, strides))

    def forward(self, real, fake):
        of_real = [part(real) for part in self.discriminators]
        of_fake = [part(fake) for part in self.discriminators]
        pairs = zip(*of_real, strict=True), zip(*of_fake, strict=True)
        (real_scores, real_features), (fake_scores, fake_features) = (map(list, p) for p in pairs)
        return real_scores, fake_scores, real_features, fake_features


class MultiPeriodDiscriminator(Several):
    def __init__(self):
        super().__init__([16, 24])


class MultiScaleDiscriminator(Several):
    def __init__(self):
        super().__init__([8, 32])


def feature_loss(real, fake):
    pairs = [(a, b) for of in zip(real, fake, strict=True) for a, b in zip(*of, strict=True)]
    return sum((a - b).abs().mean() for a, b in pairs)


def generator_loss(scores):
    losses = [(one - 1).square().mean() for one in scores]
    return sum(losses), losses


def discriminator_loss(real, fake):
    return sum((a - 1).square().mean() + b.square().mean() for a, b in zip(real, fake, strict=True))
