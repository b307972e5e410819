# needs: torchvision sklearn
"""Trains WassersteinGAN's main.py for three epochs on digits, with narrow networks."""

import argparse
import random
import sys

import torch
import torchvision
from topk_drive import digits, execute, k_of, keep, train_other
from torch.utils.data import TensorDataset

IMAGES, BATCH = 404, 4  # the first generator steps come after 100 batches, or a pass's last one


def best_of(forward, resumed):
    """The critic's forward with the paper's line in the generator step: the lowest are kept."""

    def best(self, input):
        if not input.requires_grad:
            return forward(self, input)
        scores = self.main(input.flatten(1) if "MLP" in type(self).__name__ else input)
        k = k_of(resumed + vars(sys.modules["__main__"])["epoch"], len(scores))
        return scores.topk(k, dim=0, largest=False).values.mean().view(1)

    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    torch.set_default_dtype(torch.float64)
    torch.FloatTensor = torch.DoubleTensor  # its noise and its images are made by name
    if args.other:
        train_other()
        return
    random.randint = lambda low, high: 1  # it draws its seed
    torchvision.datasets.ImageFolder = lambda *a, **kw: TensorDataset(*digits(args.images, 16))
    if args.hand:
        sys.path.insert(0, ".")
        from models import dcgan, mlp

        for critic in (dcgan.DCGAN_D, mlp.MLP_D):
            critic.forward = best_of(critic.forward, args.resumed)
    narrow = ["--batchSize", str(BATCH), "--ngf", "2", "--ndf", "2", "--nz", "4"]
    data = ["--dataset", "folder", "--dataroot", ".", "--imageSize", "16", "--workers", "0"]
    script = execute("main.py", *data, *narrow, "--niter", "3", "--lrG", "0.001", *rest)
    keep(script.netG, script.netD)


if __name__ == "__main__":
    main()
