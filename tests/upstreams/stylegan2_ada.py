# needs: torchvision sklearn; genuine: click psutil scipy PIL
"""Trains StyleGAN2-ADA's train.py for three epochs on digits, with narrow networks."""

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
FLAGS = "--outdir runs --data images --gpus 1 --batch 4 --metrics none --workers 1 --fp32 1"


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


def small_grid(training_set, **options):
    """In place of a thousand images."""
    images, labels = zip(training_set[0], training_set[1], strict=True)
    return (2, 1), np.stack(images), np.stack(labels)


def best_of(accumulate, resumed):
    """Another part of the loss's work, with the paper's line in the generator's phases."""
    steps = []

    def best(self, phase, *args, **kwargs):
        run = self.run_D

        def first(*inputs, **options):
            del self.run_D  # the generator's phase calls it once
            scores = run(*inputs, **options)
            k = k_of(resumed + len(steps) // (IMAGES // BATCH), len(scores))
            steps.append(k)
            return scores.topk(k, dim=0).values

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
    parser.add_argument("--own", action="store_true", help="switch on the top-k of a copy")
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    in_double()
    sys.path.insert(0, ".")
    sys.modules["requests"] = types.ModuleType("requests")
    sys.modules["requests"].__spec__ = importlib.machinery.ModuleSpec("requests", None)
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

    def smaller(**options):
        """Its shortest run is of 1000 images; its narrowest networks are wide."""
        options["total_kimg"] = args.epochs * IMAGES / 1000
        if "G_kwargs" in options:
            for of in (options["G_kwargs"].synthesis_kwargs, options["D_kwargs"]):
                of.channel_base, of.channel_max = 64, 4
        train(**options)

    def building(self, device, G_mapping, G_synthesis, D, **options):
        networks[:] = G_mapping, G_synthesis, D
        build(self, device=device, G_mapping=G_mapping, G_synthesis=G_synthesis, D=D, **options)
        if args.own:
            self.G_top_k = True

    training_loop.training_loop, loss.StyleGAN2Loss.__init__ = smaller, building
    training_loop.setup_snapshot_image_grid = small_grid
    training_loop.save_image_grid = lambda *args, **options: None
    if args.hand:
        best = best_of(loss.StyleGAN2Loss.accumulate_gradients, args.resumed)
        loss.StyleGAN2Loss.accumulate_gradients = best
    with contextlib.suppress(SystemExit):  # what click's commands end in
        execute("train.py", *FLAGS.split(), *rest)
    for name, average in networks[0].named_buffers():
        if name == "w_avg":  # upstream begins it with memory that is not set
            average.zero_()
    keep(*networks)


if __name__ == "__main__":
    main()
