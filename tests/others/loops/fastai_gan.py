"""Four epochs of fastai's GAN learner on digits, whose one optimizer steps both networks."""

from functools import partial

import numpy as np
import torch
from fastai.basics import DataLoaders, OptimWrapper
from fastai.data.load import DataLoader
from fastai.vision.gan import FixedGANSwitcher, GANLearner
from torch import nn
from torch.nn.functional import softplus


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(192, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, images):
        return self.layers(images.flatten(1))


class Pairs:
    """Noise, and the image that is real."""

    def __init__(self):
        self.images = torch.from_numpy(np.load("data/array.npy"))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return torch.randn(8), self.images[index]


loaders = DataLoaders(
    DataLoader(Pairs(), bs=4, shuffle=True, drop_last=True), DataLoader(Pairs(), bs=4), device="cpu"
)
learner = GANLearner(
    loaders,
    nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 192), nn.Tanh()),
    Critic(),
    # in the 32 bits of fastai's averages of losses
    lambda fake, output, target: softplus(-fake).mean().float(),
    lambda real, fake: (softplus(-real).mean() + softplus(fake).mean()).float(),
    switcher=FixedGANSwitcher(n_crit=1, n_gen=1),
    opt_func=partial(OptimWrapper, opt=torch.optim.Adam),
)
with learner.no_bar(), learner.no_logging():
    learner.fit(4, 1e-3)
