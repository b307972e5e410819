"""``python deepinv_gan.py``: deepinv's AdversarialTrainer restores noisy digits."""

import numpy as np
import torch
from deepinv.loss import SupLoss
from deepinv.loss.adversarial import SupAdversarialDiscriminatorLoss, SupAdversarialGeneratorLoss
from deepinv.models import PatchGANDiscriminator
from deepinv.physics import Denoising, GaussianNoise
from deepinv.training import AdversarialOptimizer, AdversarialTrainer
from torch import nn


class Restorer(nn.Module):
    def __init__(self):
        super().__init__()
        into, out = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.layers = nn.Sequential(into, nn.ReLU(), out)

    def forward(self, y, physics):
        return y + self.layers(y)


images = torch.as_tensor(np.load("data/array.npy")[:, :1]) / 2 + 0.5
pairs = torch.utils.data.TensorDataset(images, images + 0.1 * torch.randn(images.shape))
restorer, critic = Restorer(), PatchGANDiscriminator(1, 4, 2)
optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in (restorer, critic)]
AdversarialTrainer(
    model=restorer, D=critic, physics=Denoising(GaussianNoise(0.1)), epochs=4, device="cpu",
    train_dataloader=torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True),
    losses=[SupLoss(), SupAdversarialGeneratorLoss()], losses_d=SupAdversarialDiscriminatorLoss(),
    optimizer=AdversarialOptimizer(*optimizers), optimizer_step_multi_dataset=False,
    save_path=None, verbose=False, show_progress_bar=False,
).train()  # fmt: skip
