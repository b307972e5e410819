"""A script with the names that the rules for StudioGAN rely on, and a loop of its own."""

import argparse
import types

import loader
import torch
import yaml

DEFAULTS = {
    "DATA": {"name": "CIFAR10", "img_size": 32, "num_classes": 10},
    "MODEL": {"d_cond_mtd": "W/O", "aux_cls_type": "W/O"},
    "LOSS": {"apply_topk": False, "topk_gamma": "N/A", "topk_nu": "N/A", "apply_fm": False},
    "OPTIMIZATION": {"acml_steps": 1, "g_updates_per_step": 1, "d_first": True},
}


class Configurations:
    def __init__(self, path, run):
        with open(path) as file:
            given = yaml.safe_load(file)
        for name, section in DEFAULTS.items():
            setattr(self, name, types.SimpleNamespace(**section | given.get(name, {})))
        self.RUN = types.SimpleNamespace(**run)

    def define_optimizer(self, generator, critic):
        self.g_optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
        self.d_optimizer = torch.optim.Adam(critic.parameters(), 1e-3)


def load_configs_initialize_training():
    parser = argparse.ArgumentParser()
    parser.add_argument("-cfg", "--cfg_file")
    parser.add_argument("-save", "--save_dir")
    parser.add_argument("-ckpt", "--ckpt_dir")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--save_freq", type=int, default=100)
    args, _ = parser.parse_known_args()
    return Configurations(args.cfg_file, vars(args)), torch.cuda.current_device()


if __name__ == "__main__":
    cfgs, rank = load_configs_initialize_training()
    loader.load_worker(local_rank=rank, cfgs=cfgs)
