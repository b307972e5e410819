# needs: torchvision sklearn
"""Trains SAGAN's main.py for three passes of digits, with narrow networks."""

import argparse

import torch
import torchvision
from topk_drive import digits, execute, k_of, keep, narrow, train_other
from torch import nn
from torch.utils.data import TensorDataset

PASSES, BATCHES = 3, 2
CALLS = {"hinge": 3, "wgan-gp": 4}  # of the critic, a step: real, fake, between, the generator's


def best_of(forward, calls_a_step, resumed):
    """The critic's forward with the paper's line in the generator step."""
    calls = []

    def best(self, images):
        scores, *maps = forward(self, images)
        calls.append(None)
        if len(calls) % calls_a_step:
            return scores, *maps
        steps = len(calls) // calls_a_step - 1
        k = k_of(resumed + steps // BATCHES, scores.numel())
        return scores.reshape(-1).topk(k, dim=0).values, *maps

    return best


def kept_at_end(train):
    """The networks of the trainer, written when it has trained."""

    def trained(self):
        train(self)
        keep(self.G, self.D)

    return trained


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--resumed", type=int, default=0, help="epochs ended before, for --hand")
    parser.add_argument("--other", action="store_true")
    parser.add_argument("--adv_loss", choices=CALLS, default="hinge")
    parser.add_argument("--batch_size", type=int, default=4)
    args, rest = parser.parse_known_args()
    torch.set_default_dtype(torch.float64)
    narrow(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    import sagan_models
    import trainer

    if args.other:
        train_other()
        return
    torch.manual_seed(0)
    images = digits(BATCHES * args.batch_size + args.batch_size // 2, 64)  # the rest is no batch
    torchvision.datasets.ImageFolder = lambda *a, **kw: TensorDataset(*images)
    critic = sagan_models.Discriminator
    if args.hand:
        critic.forward = best_of(critic.forward, CALLS[args.adv_loss], args.resumed)
    trainer.Trainer.train = kept_at_end(trainer.Trainer.train)
    data = ["--dataset", "celeb", "--imsize", "64", "--batch_size", str(args.batch_size)]
    run = ["--total_step", str(PASSES * BATCHES), "--z_dim", "16", "--adv_loss", args.adv_loss]
    execute("main.py", *data, *run, *rest)


if __name__ == "__main__":
    main()
