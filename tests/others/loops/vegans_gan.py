"""``python vegans_gan.py CLASS``: four epochs of one of vegans' GANs on digits."""

import sys

import numpy as np
import vegans.GAN
from torch import nn


def net(into, out, end=None):
    layers = [nn.Linear(into, 12), nn.LeakyReLU(0.2), nn.Linear(12, out)]
    return nn.Sequential(*layers, *([end] if end else []))


kind = sys.argv[1]
images = np.load("data/array.npy").reshape(32, -1)
x, z = images.shape[1], 3
networks = {"generator": net(z, x), "adversary": net(x, 1, nn.Sigmoid())}
settings = {"x_dim": x, "z_dim": z, "folder": None, "fixed_noise_size": 4, "optim_kwargs": None}
if kind.startswith("Wasserstein"):
    networks["adversary"] = net(x, 1)
elif kind == "AAE":
    networks |= {"adversary": net(z, 1, nn.Sigmoid()), "encoder": net(x, z)}
elif kind == "EBGAN":
    networks["adversary"] = net(x, x)
    settings |= {"m": 1.0, "x_dim": (x,)}
elif kind == "LRGAN":
    networks["encoder"] = net(x, z)
elif kind == "InfoGAN":
    networks |= {"encoder": net(x, 4), "generator": net(z + 3, x)}
    settings |= {"c_dim_discrete": [2], "c_dim_continuous": 1}
model = getattr(vegans.GAN, kind)(**networks, **settings)
quiet = dict.fromkeys(("print_every", "save_losses_every", "save_images_every"))
model.fit(images, epochs=4, batch_size=8, **quiet)
