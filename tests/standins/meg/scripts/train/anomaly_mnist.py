"""Epochs over an array, with the names that the rules rely on."""

import argparse
import sys
from pathlib import Path

import torch
import yaml
from tensorboardX import SummaryWriter

sys.path += [".", "scripts"]

from data.mnist_anomaly import get_test, get_train
from functions import train_energy_model, train_generator
from loops import adam, options
from networks.mnist import EnergyModel, Generator, StatisticsNetwork


def compute_scores(truth, scores):
    return scores.mean()


def do_eval(netE, writer, epoch):
    data = torch.from_numpy(test_set[0]).cuda().requires_grad_(True)
    energies = netE(data)
    [slopes] = torch.autograd.grad(energies.sum(), data)
    for of_rows in (energies, slopes.flatten(1).norm(dim=1)):
        writer.add_scalar("score", compute_scores(test_set[1], of_rows.detach().numpy()), epoch)


def parse_args():
    parser = argparse.ArgumentParser()
    options(parser)
    args = parser.parse_args()
    return args  # noqa: RET504


args = parse_args()
dim = args.dim
size = args.batch_size
root = Path(args.save_path)
root.mkdir(exist_ok=True)
(root / "args.yml").write_text(yaml.dump(args))
writer = SummaryWriter(str(root))
train_set, test_set = get_train(args.label)[0], get_test(args.label)
netG = Generator(args.z_dim, dim).cuda()
netE = EnergyModel(dim).cuda()
netH = StatisticsNetwork(args.z_dim, dim).cuda()
of_G, of_E, of_H = adam(netG), adam(netE), adam(netH)
costs, steps = [], 0
for epoch in range(args.epochs):
    do_eval(netE, writer, epoch)
    for i in range(0, len(train_set), size):
        steps += 1
        x_real = torch.from_numpy(train_set[i : i + size]).cuda()
        train_energy_model(x_real, netG, netE, of_E, args, costs)
        if not steps % args.energy_model_iters:
            train_generator(netG, netE, netH, of_G, of_H, args, costs)
    (root / "models").mkdir(exist_ok=True)
    torch.save(netE.state_dict(), f"{root}/models/netE.pt")
