# needs: torchvision sklearn
"""Trains DCGAN's main.py for three epochs on digits, with narrow networks."""

import argparse

import torch
import torchvision
from topk_drive import digits, execute, k_of, keep, train_other
from torch import nn
from torch.utils.data import TensorDataset

IMAGES, BATCH = 10, 4  # the last batch is of two
CALLS = 3  # of the loss, a batch: real, fake, and the generator's
EPOCHS = 3


def best_of(loss, resumed):
    """The loss with the paper's line in the generator step."""
    calls = []

    def best(self, scores, target):
        calls.append(None)
        if len(calls) % CALLS:
            return loss(self, scores, target)
        steps = len(calls) // CALLS - 1
        k = k_of(resumed + steps // -(-IMAGES // BATCH), len(scores))
        return loss(self, scores.topk(k, dim=0).values, target[:k])

    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    torch.set_default_dtype(torch.float64)
    if args.other:
        train_other()
        return
    torchvision.datasets.ImageFolder = lambda *a, **kw: TensorDataset(*digits(IMAGES, 64))
    if args.hand:
        nn.BCELoss.forward = best_of(nn.BCELoss.forward, args.resumed)
    narrow = ["--batchSize", str(BATCH), "--ngf", "2", "--ndf", "2", "--nz", "4"]
    data = ["--dataset", "folder", "--dataroot", ".", "--imageSize", "64", "--workers", "0"]
    run = ["--niter", str(EPOCHS), "--manualSeed", "1"]
    script = execute("main.py", *data, *narrow, *run, *rest)
    keep(script.netG, script.netD)


if __name__ == "__main__":
    main()
