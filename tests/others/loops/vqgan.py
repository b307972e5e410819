"""Four epochs of taming-transformers' VQGAN on digits, its optimizers toggled as by Lightning 1."""

import numpy as np
import torch
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import nn
from torch.utils.data import DataLoader

images = torch.from_numpy(np.load("data/array.npy"))
shape = {
    "double_z": False, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
encoder, decoder = Encoder(**shape), Decoder(**shape)
quantize = VectorQuantizer2(16, 4, beta=0.25)
before, after = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
loss = VQLPIPSWithDiscriminator(
    disc_start=0, perceptual_weight=0.0, disc_num_layers=1, disc_ndf=8, disc_weight=0.8
)
modules = ((encoder, decoder, quantize, before, after), (loss.discriminator,))
owned = [[p for module in some for p in module.parameters()] for some in modules]
optimizers = [torch.optim.Adam(parameters, 1e-3, betas=(0.5, 0.9)) for parameters in owned]
step = 0
for _ in range(4):
    for real in DataLoader(images, batch_size=8, shuffle=True):
        for turn, optimizer in enumerate(optimizers):
            for number, parameters in enumerate(owned):
                for parameter in parameters:
                    parameter.requires_grad_(number == turn)
            codes, loss_of_codes, _ = quantize(before(encoder(real)))
            made = decoder(after(codes))
            last = decoder.conv_out.weight
            total, _ = loss(loss_of_codes, real, made, turn, step, last_layer=last)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        step += 1
