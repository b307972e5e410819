# needs: torchvision sklearn; genuine: click psutil scipy PIL
"""Trains StyleGAN3's train.py for three epochs on digits, with narrow networks."""

import argparse
import contextlib
import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from topk_drive import digits, execute, k_of, keep, train_other
from torch.utils.data import DataLoader

IMAGES, BATCH = 12, 4
FLAGS = (
    "--outdir runs --cfg stylegan2 --data images --gpus 1 --batch 4 --gamma 1 --cbase 64 --cmax 4 "
    "--map-depth 2 --mbstd-group 2 --metrics none --workers 1 --aug noaug --fp32 1"
)


def in_double():
    """What says float32 means float64, and no process is started that would not know."""
    torch.set_default_dtype(torch.float64)
    torch.float32, np.float32 = torch.float64, np.float64
    build = DataLoader.__init__

    def building(self, *args, **options):
        for name in ("num_workers", "prefetch_factor", "pin_memory"):
            options.pop(name, None)
        build(self, *args, **options)

    DataLoader.__init__ = building


def module(name, **contents):
    """One that is not needed here."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(sys.modules[name]).update(contents)


def small_grid(training_set, **options):
    """In place of a thousand images."""
    images, labels = zip(training_set[0], training_set[1], strict=True)
    return (2, 1), np.stack(images), np.stack(labels)


def best_of(accumulate, ended):
    """Another part of the loss's work, with the paper's line in the generator's phases."""

    def best(self, phase, *args, **kwargs):
        run = self.run_D

        def first(*inputs, **options):
            del self.run_D  # the generator's phase calls it once
            scores = run(*inputs, **options)
            return scores.topk(k_of(ended(kwargs), len(scores)), dim=0).values

        if phase in ("Gmain", "Gboth"):
            self.run_D = first
        accumulate(self, phase, *args, **kwargs)
        vars(self).pop("run_D", None)

    return best


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    in_double()
    sys.path.insert(0, ".")
    module("requests", Session=None)
    with contextlib.suppress(ImportError):
        from dnnlib import util

        util.Logger = lambda **options: None  # which puts stderr into stdout
    from training import loss, training_loop

    if args.other:
        train_other()
        return
    Path("images").mkdir(exist_ok=True)
    for number, image in enumerate(digits(IMAGES, 16)[0]):
        pixels = image.add(1).mul(127).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(f"images/{number:02d}.png")
    networks, train, build = [], training_loop.training_loop, loss.StyleGAN2Loss.__init__

    def shorter(**options):
        """Its shortest run is of 1000 images."""
        options["total_kimg"] = args.epochs * IMAGES / 1000
        train(**options)

    def building(self, device, G, D, **options):
        networks[:] = G, D
        build(self, device, G, D, **options)

    training_loop.training_loop, loss.StyleGAN2Loss.__init__ = shorter, building
    training_loop.setup_snapshot_image_grid = small_grid
    training_loop.save_image_grid = lambda *args, **options: None
    if args.hand:
        best = best_of(
            loss.StyleGAN2Loss.accumulate_gradients,
            lambda names: args.resumed + names["cur_nimg"] // IMAGES,
        )
        loss.StyleGAN2Loss.accumulate_gradients = best
    with contextlib.suppress(SystemExit):  # what click's commands end in
        execute("train.py", *FLAGS.split(), *rest)
    keep(*networks)


if __name__ == "__main__":
    main()
