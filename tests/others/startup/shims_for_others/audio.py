"""jik876/hifi-gan: torch.stft and librosa as they are called today."""

import librosa.filters
import numpy as np
import torch

stft, mel = torch.stft, librosa.filters.mel
torch.FloatTensor = lambda x: torch.as_tensor(np.asarray(x), dtype=torch.float64)


def real_stft(signal, *args, **kwargs):
    if "return_complex" in kwargs:  # the adapter's rules were here
        return stft(signal, *args, **kwargs)
    return torch.view_as_real(stft(signal, *args, **kwargs, return_complex=True))


def named_mel(*args, **kwargs):
    return mel(**dict(zip(("sr", "n_fft", "n_mels", "fmin", "fmax"), args, strict=False)) | kwargs)


torch.stft, librosa.filters.mel = real_stft, named_mel
