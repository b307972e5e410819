"""Flags, data and checkpoints, with the names that the adapter relies on."""

import argparse
import os

import torch
from torch.utils.data import DataLoader, Sampler

dset_dict = {}  # classes of data sets
nclass_dict, classes_per_sheet_dict = {"I32": 1000}, {"I32": 50}

FLAGS = {"dataset": "I32", "data_root": "data", "num_workers": 8, "model": "BigGAN", "dim_z": 8}
FLAGS |= {"G_ch": 64, "D_ch": 64, "G_attn": "64", "D_attn": "64", "seed": 0, "num_epochs": 100}
FLAGS |= {"G_init": "ortho", "D_init": "ortho", "batch_size": 64, "G_batch_size": 0}
FLAGS |= {"num_G_accumulations": 1, "num_D_steps": 2, "num_D_accumulations": 1}
FLAGS |= {"save_every": 2000, "test_every": 5000, "weights_root": "weights", "experiment_name": ""}


def prepare_parser():
    parser = argparse.ArgumentParser()
    for name, default in FLAGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    for name in ("shuffle", "use_multiepoch_sampler", "parallel", "resume", "split_D"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def name_from_config(config):
    return f"{config['model']}_seed{config['seed']}_bs{config['batch_size']}"


class MultiEpochSampler(Sampler):
    def __init__(self, data_source, num_epochs, start_itr, batch_size):
        self.size, self.epochs, self.seen = len(data_source), num_epochs, start_itr * batch_size

    def __iter__(self):
        order = torch.cat([torch.randperm(self.size) for _ in range(self.epochs)])
        return iter(order[self.seen :].tolist())

    def __len__(self):
        return self.size * self.epochs - self.seen


def get_data_loaders(
    dataset,
    data_root=None,
    augment=False,
    batch_size=64,
    num_workers=8,
    shuffle=True,
    load_in_mem=False,
    hdf5=False,
    pin_memory=True,
    drop_last=True,
    start_itr=0,
    num_epochs=500,
    use_multiepoch_sampler=False,
    **kwargs,
):
    data = dset_dict[dataset](root=data_root)
    if use_multiepoch_sampler:
        sampler = MultiEpochSampler(data, num_epochs, start_itr, batch_size)
        return [DataLoader(data, batch_size, sampler=sampler)]
    return [DataLoader(data, batch_size, shuffle=shuffle, drop_last=drop_last)]


def save_weights(G, D, state_dict, weights_root, experiment_name):
    folder = os.path.join(weights_root, experiment_name)
    os.makedirs(folder, exist_ok=True)
    states = {"G": G.state_dict(), "D": D.state_dict(), "state_dict": state_dict}
    states |= {"G_optim": G.optim.state_dict(), "D_optim": D.optim.state_dict()}
    for name, state in states.items():
        torch.save(state, os.path.join(folder, f"{name}.pth"))


def load_weights(
    G,
    D,
    state_dict,
    weights_root,
    experiment_name,
    name_suffix=None,
    G_ema=None,
    strict=True,
    load_optim=True,
):
    folder = os.path.join(weights_root, experiment_name)
    for name, network in (("G", G), ("D", D)):
        network.load_state_dict(torch.load(f"{folder}/{name}.pth"), strict=strict)
        network.optim.load_state_dict(torch.load(f"{folder}/{name}_optim.pth"))
    state_dict.update(torch.load(f"{folder}/state_dict.pth"))


class Distribution(torch.Tensor):
    """Noise, or classes, that are drawn anew in their place."""

    def to(self, *args, **kwargs):
        moved = super().to(*args, **kwargs).as_subclass(Distribution)
        moved.num_classes = self.num_classes
        return moved

    def sample_(self):
        return self.random_(0, self.num_classes) if self.num_classes else self.normal_()


def prepare_z_y(batch, dim_z, num_classes, device="cuda"):
    z_, y_ = (torch.zeros(batch, *size).as_subclass(Distribution) for size in ((dim_z,), ()))
    z_.num_classes, y_.num_classes = 0, num_classes
    return z_.to(device, torch.float32), y_.to(device, torch.int64)
