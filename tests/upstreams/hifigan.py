# needs: sklearn; genuine: matplotlib scipy
"""Trains HiFi-GAN's train.py for three epochs on ten tones, with narrow networks."""

import argparse
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from topk_drive import execute, k_of, keep, narrow, train_other
from torch import nn

SOUNDS, BATCH = 10, 4  # the last two fill no batch
STEPS = SOUNDS // BATCH
RATE = 22050
CONFIG = {
    "resblock": "2", "num_gpus": 0, "batch_size": BATCH, "learning_rate": 5e-3, "adam_b1": 0.8,
    "adam_b2": 0.99, "lr_decay": 0.999, "seed": 1234, "upsample_rates": [8, 8],
    "upsample_kernel_sizes": [16, 16], "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 2]], "segment_size": 1024,
    "num_mels": 80, "n_fft": 256, "hop_size": 64, "win_size": 256, "sampling_rate": RATE,
    "fmin": 0, "fmax": 8000, "fmax_for_loss": None, "num_workers": 0,
}  # fmt: skip
FLAGS = (
    "--config small.json --input_wavs_dir sounds --input_training_file train.txt "
    "--input_validation_file valid.txt --training_epochs 3 --checkpoint_interval 1000"
)


class Ignored:
    """What writes for TensorBoard."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def module(name, **contents):
    """One that the script finds in place of its own."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(sys.modules[name]).update(contents)


def bands(*, sr, n_fft, n_mels, fmin, fmax):
    """Overlapping triangles, as librosa has them but for their places; (n_mels, 1 + n_fft / 2)."""
    place = np.linspace(0, n_mels - 1, n_fft // 2 + 1)
    return np.clip(1 - abs(place - np.arange(n_mels)[:, None]), 0, None)


def prepare():
    """Small data; double precision where the script asks for single."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.FloatTensor = lambda data: torch.as_tensor(np.asarray(data), dtype=torch.float64)
    module("librosa")
    module("librosa.util", normalize=lambda sound: sound / abs(sound).max())
    module("librosa.filters", mel=bands)
    module("torch.utils.tensorboard", SummaryWriter=Ignored)
    Path("sounds").mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    times = np.arange(4000) / RATE
    for number in range(SOUNDS + 1):
        tone = np.sin(2 * np.pi * random.uniform(100, 800) * times)
        noise = 0.05 * random.standard_normal(len(times))
        wavfile.write(f"sounds/{number}.wav", RATE, (15000 * (tone + noise)).astype(np.int16))
    Path("train.txt").write_text("\n".join(f"{number}|tone" for number in range(SOUNDS)))
    Path("valid.txt").write_text(f"{SOUNDS}|tone")
    Path("small.json").write_text(json.dumps(CONFIG))


def by_hand(models, resumed, follow):
    """The paper's line in the generator step, for the lists of scores of both critics."""
    loss, features, calls = models.generator_loss, models.feature_loss, []

    def kept(scores):
        mean = torch.stack([one.flatten(1).mean(1) for one in scores]).mean(0)
        ended = len(calls) // 2 // STEPS  # two critics a step
        return mean.topk(k_of(resumed + ended, len(mean))).indices

    def best(scores):
        rows = kept(scores)
        calls.append(rows)
        return loss([one[rows] for one in scores])

    def best_features(real, fake):
        if not follow:
            return features(real, fake)
        rows = kept([part[-1] for part in fake])  # the scores are the last of the features
        return features(*([[one[rows] for one in part] for part in of] for of in (real, fake)))

    models.generator_loss, models.feature_loss = best, best_features


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--follow", action="store_true", help="by hand, features of kept rows only")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    if args.other:
        torch.set_default_dtype(torch.float64)
        import models

        train_other()
        return
    prepare()
    narrow(nn.Conv1d, nn.Conv2d, least=16, keep=[80])
    import models

    networks = []
    for critic in (
        models.Generator,
        models.MultiPeriodDiscriminator,
        models.MultiScaleDiscriminator,
    ):
        build = critic.__init__

        def building(self, *args, build=build):
            build(self, *args)
            networks.append(self)

        critic.__init__ = building
    if args.hand:
        by_hand(models, args.resumed, args.follow)
    execute("train.py", *FLAGS.split(), *rest)
    keep(*networks)


if __name__ == "__main__":
    main()
