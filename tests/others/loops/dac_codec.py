"""Four epochs of descript-audio-codec on tones, in the order of its ``scripts/train.py``."""

import numpy as np
import torch
from audiotools import AudioSignal
from dac.model import DAC, Discriminator
from dac.nn.loss import GANLoss, L1Loss
from torch.utils.data import DataLoader

waves = torch.from_numpy(np.load("data/waves.npy"))[:, None]
# With few codes a wave repeats itself, and which of its equal peaks gets the gradient of the
# critic's normalisation is rounding.
generator = DAC(
    encoder_dim=4, encoder_rates=[2, 4], decoder_dim=16, decoder_rates=[4, 2], n_codebooks=4,
    codebook_size=256, codebook_dim=4, sample_rate=24000,
)  # fmt: skip
critic = Discriminator(periods=[2, 3], fft_sizes=[256], sample_rate=24000)
gan, waveform = GANLoss(critic), L1Loss()
optimizers = [torch.optim.AdamW(n.parameters(), 1e-3, (0.8, 0.99)) for n in (critic, generator)]
for _ in range(4):
    for real in DataLoader(waves, batch_size=4, shuffle=True):
        signal = AudioSignal(real, 24000)
        out = generator(signal.audio_data, signal.sample_rate)
        made = AudioSignal(out["audio"], signal.sample_rate)
        optimizers[0].zero_grad()
        gan.discriminator_loss(made, signal).backward()
        optimizers[0].step()
        adversarial, features = gan.generator_loss(made, signal)
        codes = out["vq/commitment_loss"] * 0.25 + out["vq/codebook_loss"]
        loss = 15.0 * waveform(made, signal) + 2.0 * features + adversarial + codes
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
