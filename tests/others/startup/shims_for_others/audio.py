"""jik876/hifi-gan: torch.stft and librosa as they are called today."""

import librosa.filters
import numpy as np
import torch

stft, mel = torch.stft, librosa.filters.mel
torch.FloatTensor = lambda x: torch.as_tensor(np.asarray(x), dtype=torch.float64)


def real_stft(signal, *args, **kwargs):
    return torch.view_as_real(stft(signal, *args, **kwargs | {"return_complex": True}))


def named_mel(sr, n_fft, n_mels, fmin, fmax):
    return mel(sr=sr, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)


torch.stft, librosa.filters.mel = real_stft, named_mel
