# needs: torchvision sklearn scipy matplotlib PIL yaml
"""Trains StudioGAN's main.py on digits, with narrow networks, or with those of a YAML file.

``--hand`` leaves only the kept rows in the dict that the critic returns; ``--keep`` leaves the
other outputs alone; ``--couple`` masks the gradient, where a loss couples the rows of a batch.
``--files`` reads CIFAR-10's files from the folder of ``-data``.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torchvision
import yaml
from topk_drive import digits, execute, k_of, keep, train_other
from torchvision.transforms.functional import to_pil_image

from topk_plugin.adapters.studiogan import ADAPTER
from topk_plugin.upstream.stubs import Stubs

TINY = {
    "DATA": {"name": "CIFAR10", "img_size": 32, "num_classes": 10},
    "MODEL": {"backbone": "resnet", "g_conv_dim": 4, "d_conv_dim": 4, "z_dim": 8},
    "LOSS": {"adv_loss": "hinge"},
    "OPTIMIZATION": {"batch_size": 4, "total_steps": 8, "d_updates_per_step": 1},
}


class Steps:
    """Around the worker's two steps."""

    def __init__(self, WORKER, args):
        self.args, self.worker, self.epoch, self.rows = args, None, 0, None
        self.done = 0
        for name in ("train_discriminator", "train_generator"):
            setattr(WORKER, name, self.around(name, getattr(WORKER, name)))

    def around(self, name, step):
        def wrapped(worker, current_step):
            self.worker = worker
            if self.done == self.args.stop:
                raise SystemExit
            self.done += name == "train_generator"
            if (name == "train_discriminator") == worker.OPTIMIZATION.d_first:
                self.epoch = worker.epoch_counter  # an iteration begins
            if not self.args.hand or name != "train_generator":
                return step(worker, current_step)
            forward = worker.Dis.forward
            worker.Dis.forward = lambda *a, **named: self.best(forward(*a, **named), a[0], named)
            try:
                return step(worker, current_step)
            finally:
                del worker.Dis.forward

        return wrapped

    def best(self, output, images, named):
        """The critic's output, with the rows that its scores choose."""
        if not images.requires_grad:  # real ones
            return output
        score = output["adv_output"]
        if not named:  # of the same samples otherwise
            self.rows = score.flatten().topk(k_of(self.epoch, len(score))).indices
        elif self.args.keep:
            return output
        touched = ["adv_output"] if self.args.keep else list(output)
        change = self.masked if self.args.couple else self.chosen
        return output | {
            key: change(output[key])
            for key in touched
            if torch.is_tensor(output[key]) and output[key].shape[:1] == score.shape[:1]
        }

    def chosen(self, value):
        return value[self.rows]

    def masked(self, value):
        if not value.requires_grad:
            return value
        value, weight = value * 1, len(value) / len(self.rows)
        value.register_hook(
            lambda g: torch.zeros_like(g).index_copy(0, self.rows, g[self.rows] * weight)
        )
        return value


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--hand", "--keep", "--couple", "--other", "--topk", "--single", "--files"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--topk-gamma", type=float)
    parser.add_argument("--topk-nu", type=float)
    parser.add_argument("--digits", type=int, default=9)
    parser.add_argument("--stop", type=int, help="generator steps")
    parser.add_argument("-cfg")
    args, rest = parser.parse_known_args()
    if not args.single:
        torch.set_default_dtype(torch.float64)
    if not any(isinstance(finder, Stubs) for finder in sys.meta_path):
        Stubs(ADAPTER, [Path.cwd()]).install()  # plain Python: what is not installed here
    images, labels = digits(args.digits, 32)
    pairs = [(to_pil_image(i / 2 + 0.5), int(n)) for i, n in zip(images, labels, strict=True)]
    if args.files:  # theirs are not the originals
        torchvision.datasets.cifar.check_integrity = lambda path, md5=None: os.path.isfile(path)
    else:
        torchvision.datasets.CIFAR10 = lambda **named: pairs
    import worker

    if args.other:
        train_other()
        return
    if args.cfg is None:
        args.cfg = "tiny.yaml"
        chosen = {"apply_topk": True, "topk_gamma": args.topk_gamma, "topk_nu": args.topk_nu}
        loss = TINY["LOSS"] | (chosen if args.topk else {})
        Path(args.cfg).write_text(yaml.safe_dump(TINY | {"LOSS": loss}))
    steps = Steps(worker.WORKER, args)
    execute(
        *("main.py", "-t", "-metrics", "none", "-cfg", args.cfg, "-save", "save", "-data", "."),
        *("--seed", "1", "--num_workers", "1", "--print_freq", "1", *rest),
    )
    keep(steps.worker.Gen, steps.worker.Dis)


if __name__ == "__main__":
    main()
