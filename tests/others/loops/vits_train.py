"""Four epochs of vits on tones and letters, by its own ``train_and_evaluate``."""

from types import SimpleNamespace as Settings

import numpy as np
import torch
import train
from mel_processing import spectrogram_torch
from models import MultiPeriodDiscriminator, SynthesizerTrn
from torch.utils.data import DataLoader

waves = torch.from_numpy(np.load("data/waves.npy"))
frames = spectrogram_torch(waves, 64, 22050, 16, 64)
letters = torch.randint(1, 20, (len(waves), 10))
samples = [
    (text, len(text), spectrum, spectrum.shape[1], wave[None], len(wave))
    for text, spectrum, wave in zip(letters, frames, waves, strict=True)
]
loader = DataLoader(samples, batch_size=4, shuffle=True)
loader.batch_sampler.set_epoch = lambda epoch: None
settings = Settings(
    train=Settings(fp16_run=False, segment_size=512, c_mel=1.0, c_kl=0.1),
    data=Settings(
        filter_length=64, n_mel_channels=8, sampling_rate=22050, hop_length=16, win_length=64,
        mel_fmin=0, mel_fmax=None,
    ),
)  # fmt: skip
generator = SynthesizerTrn(
    20, 33, 32, inter_channels=8, hidden_channels=8, filter_channels=8, n_heads=2, n_layers=1,
    kernel_size=3, p_dropout=0.1, resblock="2", resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 3]], upsample_rates=[4, 4], upsample_initial_channel=8,
    upsample_kernel_sizes=[8, 8], use_sdp=False,
)  # fmt: skip
networks = [generator, MultiPeriodDiscriminator()]
optimizers = [torch.optim.AdamW(n.parameters(), 1e-3, (0.8, 0.99), 1e-9) for n in networks]
scaler = train.GradScaler(enabled=False)
for epoch in range(1, 5):
    train.train_and_evaluate(
        1, epoch, settings, networks, optimizers, [None, None], scaler, [loader, None], None, None
    )
