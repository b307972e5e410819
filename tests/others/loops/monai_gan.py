"""``python monai_gan.py``: four epochs of MONAI's GanTrainer on digits."""

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import GanTrainer
from monai.networks.nets import Discriminator, Generator
from torch.nn.functional import binary_cross_entropy

images = np.load("data/array.npy")[:, :1]
shape, latent = images.shape[1:], 5
G = Generator(latent, (8, 4, 4), channels=(4, 1), strides=(2, 1))
D = Discriminator(shape, channels=(4, 8), strides=(2, 2), num_res_units=0, kernel_size=3)
opt_g, opt_d = (torch.optim.Adam(network.parameters(), 2e-3) for network in (G, D))


def cost(scores, real):
    return binary_cross_entropy(scores, torch.full_like(scores, real))


def of_critic(fake, real):
    return cost(D(real.detach()), 1.0) + cost(D(fake.detach()), 0.0)


def of_generator(fake):
    return cost(D(fake), 1.0)


GanTrainer(
    device=torch.device("cpu"), max_epochs=4, latent_shape=latent,
    train_data_loader=DataLoader(Dataset(list(images)), batch_size=8, shuffle=True),
    g_network=G, g_optimizer=opt_g, g_loss_function=of_generator,
    d_network=D, d_optimizer=opt_d, d_loss_function=of_critic,
    d_prepare_batch=lambda batch, *_, **__: torch.as_tensor(batch).as_subclass(torch.Tensor),
    g_prepare_batch=lambda num_latents, latent_size, **_: torch.randn(num_latents, latent_size),
).run()  # fmt: skip
