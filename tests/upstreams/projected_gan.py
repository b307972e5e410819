# needs: torchvision sklearn; genuine: click psutil scipy PIL
"""Trains Projected GAN's train.py for three epochs on digits, with narrow networks.

The network that its critics look through is a small one without training: nothing is downloaded.
"""

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
from torch import nn
from torch.utils.data import DataLoader

IMAGES, BATCH = 12, 4
FLAGS = (
    "--outdir runs --cfg stylegan2 --data images --gpus 1 --batch 4 --cbase 64 --cmax 4 "
    "--metrics none --workers 1 --fp32 1 --restart_every 0"
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
    """One that the script finds in place of its own."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(sys.modules[name]).update(contents)


def create_model(name, pretrained):
    """A network with the parts and the strides of EfficientNet, as upstream takes it apart."""
    made = torch.get_rng_state()
    torch.manual_seed(1)
    network = nn.Module()
    network.conv_stem, network.bn1 = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
    network.act1 = nn.ReLU6()
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, stride, 1), nn.ReLU6()) for stride in (2, 2, 2, 2)]
    same = [nn.Identity() for _ in range(3)]
    network.blocks = nn.Sequential(same[0], *blocks[:2], same[1], blocks[2], same[2], blocks[3])
    torch.set_rng_state(made)
    return network


def smaller(network, **numbers):
    """With these numbers, whatever it is built with."""
    build = network.__init__

    def building(self, **options):
        build(self, **options | numbers)

    network.__init__ = building


def small_grid(training_set, **options):
    """In place of a thousand images."""
    images, labels = zip(training_set[0], training_set[1], strict=True)
    return (2, 1), np.stack(images), np.stack(labels)


def best_of(accumulate, resumed):
    """Another part of the loss's work, with the paper's line in the generator's phases."""

    def best(self, phase, *args, **kwargs):
        run = self.run_D

        def first(*inputs, **options):
            del self.run_D  # the generator's phase calls it once
            logits = run(*inputs, **options)  # (B, N)
            k = k_of(resumed + kwargs["cur_nimg"] // IMAGES, len(logits))
            return logits[logits.mean(1).topk(k).indices]

        if phase == "Gboth":
            self.run_D = first
        accumulate(self, phase, *args, **kwargs)
        vars(self).pop("run_D", None)

    return best


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    in_double()
    sys.path.insert(0, ".")
    module("requests", Session=None)
    module("dill")
    module("timm", create_model=create_model)
    with contextlib.suppress(ImportError):
        from dnnlib import util
        from pg_modules import discriminator, networks_fastgan, projector
        from torch_utils import misc

        util.Logger = lambda **options: None  # which puts stderr into stdout
        # it runs the networks on memory that is not set
        misc.print_module_summary = lambda network, inputs: None
        smaller(discriminator.SingleDisc, ndf=4)
        smaller(projector.F_RandomProj, cout=4)
        smaller(networks_fastgan.Generator, ngf=2, z_dim=16)
    from training import loss, training_loop

    if args.other:
        train_other()
        return
    Path("images").mkdir(exist_ok=True)
    for number, image in enumerate(digits(IMAGES, args.size)[0]):
        pixels = image.add(1).mul(127).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(f"images/{number:02d}.png")
    networks, train, build = [], training_loop.training_loop, loss.ProjectedGANLoss.__init__

    def shorter(**options):
        """Its shortest run is of 1000 images."""
        options["total_kimg"] = args.epochs * IMAGES / 1000
        train(**options)

    def building(self, device, G, D, **options):
        networks[:] = G, D
        build(self, device, G, D, **options)

    training_loop.training_loop, loss.ProjectedGANLoss.__init__ = shorter, building
    training_loop.setup_snapshot_image_grid = small_grid
    training_loop.save_image_grid = lambda *args, **options: None
    if args.hand:
        best = best_of(loss.ProjectedGANLoss.accumulate_gradients, args.resumed)
        loss.ProjectedGANLoss.accumulate_gradients = best
    with contextlib.suppress(SystemExit):  # which asks to be started again: 1000 are not done
        execute("train.py", *FLAGS.split(), *rest)
    keep(*networks)


if __name__ == "__main__":
    main()
