"""The loop, with a variable ``topk`` of its own."""

import os

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from worker import WORKER, Critic, make_generator


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.pairs = datasets.CIFAR10(root=".", train=True, download=True)
        self.to_tensor = transforms.ToTensor()

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, label = self.pairs[index]
        return self.to_tensor(image) * 2 - 1, label


def load_worker(local_rank, cfgs):
    torch.manual_seed(cfgs.RUN.seed)
    options = cfgs.OPTIMIZATION
    step, epoch, topk = 0, 0, options.batch_size
    basket = options.batch_size * options.acml_steps * options.d_updates_per_step
    data = DataLoader(Images(), basket, shuffle=True, drop_last=True)
    Gen, Dis = make_generator(cfgs.MODEL), Critic(cfgs.MODEL)
    cfgs.define_optimizer(Gen, Dis)
    if cfgs.RUN.ckpt_dir:
        Gen.load_state_dict(torch.load(os.path.join(cfgs.RUN.ckpt_dir, "G.pth")))
        saved = torch.load(os.path.join(cfgs.RUN.ckpt_dir, "D.pth"))
        Dis.load_state_dict(saved["state_dict"])
        step, epoch, topk = saved["step"], saved["epoch"], saved["topk"]
    worker = WORKER(cfgs, Gen, Dis, data, local_rank)
    worker.topk, worker.epoch_counter = topk, epoch
    while step <= options.total_steps:
        steps = [worker.train_discriminator, worker.train_generator]
        for train in steps if options.d_first else reversed(steps):
            train(step)
        worker.log_train_statistics(step)
        step += 1
        if cfgs.LOSS.apply_topk and worker.epoch_counter == epoch + 1:
            epoch += 1
            lowest = int(options.batch_size * cfgs.LOSS.topk_nu)
            worker.topk = max(worker.topk * cfgs.LOSS.topk_gamma, lowest)
        if step % cfgs.RUN.save_freq == 0:
            worker.save(step)
