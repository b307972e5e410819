"""A loop with the names that the rules for MSGAN rely on."""

import os

import torch
import torchvision
from model import CDCGAN
from options import TrainOptions


class Saver:
    def __init__(self, opts):
        self.folder = f"{opts.result_dir}/trial"
        os.makedirs(self.folder, exist_ok=True)

    def write_img(self, ep, model):
        print("epoch", ep)

    def write_model(self, ep, steps, model):
        model.save(f"{self.folder}/{ep:05d}.pth", ep, steps)


def main():
    opts = TrainOptions().parse()
    images = torchvision.datasets.CIFAR10(opts.dataroot)
    train_loader = torch.utils.data.DataLoader(images, opts.batch_size, shuffle=True)
    model = CDCGAN(opts)
    model.setgpu(opts.gpu)
    ep0, total_it = model.resume(opts.resume) if opts.resume else (-1, 0)
    ep0 += 1
    saver = Saver(opts)
    for ep in range(ep0, opts.n_ep):
        for real, label in train_loader:
            if len(real) == opts.batch_size:
                model.update(real.cuda(opts.gpu), label)
                total_it += 1
        saver.write_img(ep, model)
        saver.write_model(ep, total_it, model)


if __name__ == "__main__":
    main()
