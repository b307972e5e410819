"""Four epochs of vocos' LightningModule on tones, its two optimizers in turn as by Lightning 1."""

import types

import numpy as np
import torch
from torch.utils.data import DataLoader
from vocos.experiment import VocosExp
from vocos.feature_extractors import MelSpectrogramFeatures
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone


class Experiment(VocosExp):
    """Outside of a trainer: nothing is logged."""

    global_step = 1

    def log(self, *args, **kwargs):
        pass


waves = torch.from_numpy(np.load("data/waves.npy"))
experiment = Experiment(
    MelSpectrogramFeatures(sample_rate=24000, n_fft=256, hop_length=64, n_mels=16),
    VocosBackbone(input_channels=16, dim=16, intermediate_dim=24, num_layers=1),
    ISTFTHead(dim=16, n_fft=256, hop_length=64, padding="center"),
    sample_rate=24000, initial_learning_rate=5e-4,
)  # fmt: skip
experiment._trainer = types.SimpleNamespace(max_steps=48)
experiment.train_discriminator = True
optimizers, _ = experiment.configure_optimizers()
for _ in range(4):
    for number, real in enumerate(DataLoader(waves, batch_size=4, shuffle=True)):
        for turn, optimizer in enumerate(optimizers):
            owned = {p for group in optimizer.param_groups for p in group["params"]}
            for parameter in experiment.parameters():
                parameter.requires_grad_(parameter in owned)
            loss = experiment.training_step(real, number, turn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
