# needs: torchvision sklearn; genuine: h5py tqdm scipy
"""Trains BigGAN-PyTorch's train.py for three epochs on digits, with narrow networks."""

import argparse
import functools

import torch
from topk_drive import digits, execute, k_of, keep, train_other
from torch.utils.data import TensorDataset

FLAGS = "--dataset I32 --num_workers 0 --shuffle --batch_size 4 --num_D_steps 2 --num_epochs 3"
NARROW = "--G_ch 2 --D_ch 2 --dim_z 8 --G_attn 0 --D_attn 0 --G_init N02 --D_init N02"
RARE = "--save_every 1000000 --test_every 1000000"


def in_double(to):
    """The latent vectors' dtype is given by name."""

    @functools.wraps(to)
    def to_double(self, *args, **kwargs):
        return to(self, *(torch.float64 if a is torch.float32 else a for a in args), **kwargs)

    return to_double


def by_hand(model, train_fns, size):
    """The paper's line in the generator step, for a data set of ``size`` images."""
    forward, make = model.G_D.forward, train_fns.GAN_training_function
    seen = {}

    @functools.wraps(make)
    def making(G, D, GD, z_, y_, ema, state_dict, config):
        batch = config["batch_size"] * config["num_D_steps"] * config["num_D_accumulations"]
        of_pass = size if config["use_multiepoch_sampler"] else size // batch * batch
        seen["epoch"] = lambda: (state_dict["itr"] - 1) * batch // of_pass
        return make(G, D, GD, z_, y_, ema, state_dict, config)

    def best(self, *args, train_G=False, **kwargs):
        scores = forward(self, *args, train_G=train_G, **kwargs)
        if not train_G:
            return scores
        return scores.topk(k_of(seen["epoch"](), len(scores)), dim=0).values

    train_fns.GAN_training_function, model.G_D.forward = making, best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--other", action="store_true")
    parser.add_argument("--digits", type=int, default=44)  # 4 of which fill no batch
    parser.add_argument("--model", default="BigGAN")
    args, rest = parser.parse_known_args()
    torch.set_default_dtype(torch.float64)
    import inception_utils
    import train_fns
    import utils

    if args.other:
        train_other()
        return
    model = __import__(args.model)
    # it would need Inception's weights, and their statistics of the data
    inception_utils.prepare_inception_metrics = lambda *args: None
    utils.dset_dict["I32"] = lambda **kwargs: TensorDataset(*digits(args.digits, 32))
    utils.nclass_dict["I32"] = utils.classes_per_sheet_dict["I32"] = 10
    utils.Distribution.to = in_double(utils.Distribution.to)
    networks, build = [], model.G_D.__init__

    def building(self, G, D):
        networks[:] = G, D
        build(self, G, D)

    model.G_D.__init__ = building
    if args.hand:
        by_hand(model, train_fns, args.digits)
    flags = f"{FLAGS} {NARROW} {RARE} --model {args.model}".split()
    execute("train.py", *flags, *rest)
    keep(*networks)


if __name__ == "__main__":
    main()
