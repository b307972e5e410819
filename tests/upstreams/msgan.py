# needs: torchvision sklearn
"""Trains a variant of MSGAN for three epochs on digits, with narrow networks."""

import argparse
import importlib.machinery
import random
import sys
import types
from pathlib import Path

import torch
import torchvision
from PIL import Image
from topk_drive import digits, execute, k_of, keep, narrow, train_other
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

IMAGES, BATCH = 10, 4  # two of which fill no batch, and are skipped
STEPS = IMAGES // BATCH
CALLS = 2  # of the critic, in a generator step
VARIANTS = {
    "DCGAN": "--dataroot . --batch_size 4 --nz 4 --n_ep 3 --model_save_freq 1 --no_display_img",
    "Pix2Pix": "--dataroot pairs --name pairs --batch_size 4 --ngf 1 --ndf 4 --loadSize 128 "
    "--fineSize 128 --netG unet_128 --netD basic_128_multi --gpu_ids -1 --num_threads 0 --niter 3 "
    "--niter_decay 0 --save_epoch_freq 1 --no_html",
    "DRIT": "--dataroot .",
}


class Ignored:
    """What writes for TensorBoard."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def write_pairs(folder):
    """Digits beside themselves upside down, as images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(digits(IMAGES, 128)[0]):
        pixels = torch.cat([image, image.flip(1)], 2).add(1).mul(127).byte().permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


class Counted:
    """k of each call of the critic in generator steps."""

    def __init__(self, resumed):
        self.resumed, self.calls = resumed, 0

    def __call__(self, batch):
        self.calls += 1
        return k_of(self.resumed + (self.calls - 1) // CALLS // STEPS, batch)


def dcgan_by_hand(model, k):
    """The paper's line in the generator step."""

    def best(self, netD, fake, label):
        scores = netD.forward(fake, label)
        kept = scores.topk(k(len(scores)), dim=0).values
        return F.binary_cross_entropy(kept, torch.ones_like(kept))

    model.CDCGAN.backward_G = best


def pix2pix_by_hand(model, k):
    """The same for a list of maps of scores, which are ranked by their averages."""

    def best(self, fake, netD=None, ll=0.0):
        output = netD(fake)
        maps = [output] if torch.is_tensor(output) else output
        scores = torch.stack([one.flatten(1).mean(1) for one in maps]).mean(0)
        kept = scores.topk(k(len(scores))).indices
        best = [one[kept] for one in maps]
        return self.criterionGAN(best if maps is output else best[0], True)[0] * ll

    model.Pix2PixModel.backward_G_GAN = best


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--variant", default="DCGAN", choices=VARIANTS)
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--other", action="store_true")
    args, rest = parser.parse_known_args()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    random.seed(0)  # it flips images
    tensorboard = sys.modules["tensorboardX"] = types.ModuleType("tensorboardX")
    tensorboard.__spec__ = importlib.machinery.ModuleSpec("tensorboardX", None)
    tensorboard.SummaryWriter = Ignored
    folder = f"{args.variant}-Mode-Seeking"
    sys.path.insert(0, folder)
    if args.other:
        import model

        train_other()
        return
    networks, k = [], Counted(args.resumed)
    if args.variant == "DCGAN":
        narrow(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, factor=32)
        torchvision.datasets.CIFAR10 = lambda *a, **kw: TensorDataset(*digits(IMAGES, 32))
        import model

        built, by_hand, made = model.CDCGAN, dcgan_by_hand, "setgpu"
    elif args.variant == "Pix2Pix":
        write_pairs(Path("pairs/train"))
        from models import pix2pix_model as model

        built, by_hand, made = model.Pix2PixModel, pix2pix_by_hand, "initialize"
    if args.variant != "DRIT":
        make = getattr(built, made)

        def making(self, *args):
            make(self, *args)
            of_dcgan = made == "setgpu"
            networks[:] = (self.G, self.D) if of_dcgan else (self.netG, self.netD)

        setattr(built, made, making)
        if args.hand:
            by_hand(model, k)
    execute(f"{folder}/train.py", *VARIANTS[args.variant].split(), *rest)
    keep(*networks)


if __name__ == "__main__":
    main()
