"""jaywalnut310/vits: what it calls of older torch and librosa, a diagonal alignment, and a critic
of few channels."""

import sys
import types

import numpy as np
import torch
from torch import nn

stft = torch.stft
WIDE = (64, 128, 512, 1024)  # the generator's are others


def real_stft(*args, **kwargs):
    return torch.view_as_real(stft(*args, **kwargs, return_complex=True))


def filters(rate, n_fft, bands, low, high):
    """Of a mel spectrogram, about."""
    return np.abs(np.random.default_rng(0).normal(size=(bands, n_fft // 2 + 1))) / n_fft


def diagonal(value, mask):
    """Stands for the alignment, which is compiled code."""
    path = torch.zeros_like(mask)
    for one, inside in zip(path, mask, strict=True):
        frames, letters = int(inside[:, 0].sum()), int(inside[0].sum())
        for frame in range(frames):
            one[frame, frame * letters // frames] = 1
    return path


def thin(kind):
    build = kind.__init__

    def __init__(self, into, out, *args, groups=1, **kwargs):
        into, out = (16 if channels in WIDE else channels for channels in (into, out))
        build(self, into, out, *args, groups=min(groups, 4), **kwargs)

    kind.__init__ = __init__


def module(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)
    return sys.modules[name]


torch.stft = real_stft
thin(nn.Conv1d)
thin(nn.Conv2d)
module("monotonic_align", maximum_path=diagonal)
module("unidecode", unidecode=None)
module("phonemizer", phonemize=None)
util = module("librosa.util", normalize=None, pad_center=None, tiny=None)
module("librosa", util=util, filters=module("librosa.filters", mel=filters))
