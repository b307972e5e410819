"""Two ranks, accumulation over four micro-batches: a GAN trained by accelerate or Lightning.

``python frameworks.py accelerate|lightning``: trains it with an attached critic, with top-k by hand
and without, in float64 and in mixed precision (bfloat16), and writes to ``ends.json`` how far the
weights that the first ends with are from those of the others.
"""

import contextlib
import json
import os
import sys
import warnings

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from topk_plugin import TopK, attach

RANKS, MICRO, BATCH, PASSES = 2, 4, 8, 3
MODES = ("attached", "by hand", "without")


def networks(double):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    return (generator.double(), critic.double()) if double else (generator, critic)


def data(double):
    rows = RANKS * MICRO * BATCH * 2  # two optimizer steps a pass
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1)) + 1
    return x.double() if double else x


def adam(network):
    return torch.optim.SGD(network.parameters(), 0.05)


class Loss:
    """Of the generator: with top-k by hand, or as it is."""

    def __init__(self, mode):
        self.mode, self.fraction = mode, 1.0

    def __call__(self, scores):
        if self.mode == "by hand":
            scores = scores.flatten().topk(max(1, int(self.fraction * len(scores)))).values
        return softplus(-scores).mean()

    def end_pass(self, topk):
        self.fraction = max(self.fraction / 2, 0.25)
        topk.end_epoch()


def by_accelerate(mode, double):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=MICRO, mixed_precision="no" if double else "bf16"
    )
    loader = DataLoader(data(double), BATCH)
    nets = networks(double)
    G, D, optG, optD, loader = accelerator.prepare(*nets, *map(adam, nets), loader)
    loss, topk = Loss(mode), TopK(gamma=0.5, nu=0.25)
    noise = torch.Generator().manual_seed(accelerator.process_index)

    def z():
        return torch.randn(BATCH, 3, generator=noise).to(nets[0][0].weight.dtype)

    with attach(D, topk) if mode == "attached" else contextlib.nullcontext():
        for _ in range(PASSES):
            for x in loader:
                with accelerator.accumulate(G, D):
                    fake = G(z()).detach()
                    accelerator.backward((softplus(-D(x)) + softplus(D(fake))).mean())
                    optD.step()
                    optD.zero_grad()
                    nets[1].requires_grad_(False)  # what it has accumulated stays its own
                    accelerator.backward(loss(nets[1](G(z()))))
                    nets[1].requires_grad_(True)
                    optG.step()
                    optG.zero_grad()
            loss.end_pass(topk)
    return weights(nets), topk


def by_lightning(mode, double):
    import logging

    import lightning
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    loss, topk = Loss(mode), TopK(gamma=0.5, nu=0.25)

    class GAN(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = networks(double)

        def configure_optimizers(self):
            return [adam(self.generator), adam(self.critic)], []

        def on_fit_start(self):
            self.noise = torch.Generator().manual_seed(self.global_rank)

        def take(self, optimizer, made):
            self.toggle_optimizer(optimizer)
            self.manual_backward(made() / MICRO)
            if (self.taken + 1) % MICRO == 0:
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

        def training_step(self, x, number):
            self.taken = number
            z = torch.randn(BATCH, 3, generator=self.noise).to(x.dtype)
            of_generator, of_critic = self.optimizers()
            self.take(of_generator, lambda: loss(self.critic(self.generator(z))))
            fake = self.generator(z).detach()
            both = lambda: (softplus(-self.critic(x)) + softplus(self.critic(fake))).mean()  # noqa: E731
            self.take(of_critic, both)

        def on_train_epoch_end(self):
            loss.end_pass(topk)

    gan = GAN()
    off = ["logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"]
    strategy = lightning.pytorch.strategies.DDPStrategy(
        find_unused_parameters=True, cluster_environment=TorchElasticEnvironment()
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=RANKS, strategy=strategy, max_epochs=PASSES,
        precision="64-true" if double else "bf16-mixed", **dict.fromkeys(off, False),
    )  # fmt: skip
    with attach(gan.critic, topk) if mode == "attached" else contextlib.nullcontext():
        trainer.fit(gan, DataLoader(data(double), BATCH))
    return weights((gan.generator, gan.critic)), topk


def weights(modules):
    return torch.cat([p.detach().double().flatten() for one in modules for p in one.parameters()])


def work(rank, how):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "one"}
    found = {}
    train = {"accelerate": by_accelerate, "lightning": by_lightning}[how]
    for double in (True, False):
        ends, topk = {}, None
        for mode in MODES:
            ends[mode], of_run = train(mode, double)
            topk = topk or of_run
        size = ends["by hand"].norm()
        apart = {mode: float((ends["attached"] - ends[mode]).norm() / size) for mode in MODES[1:]}
        report = topk.report()
        counted = [report.steps, report.rows, report.dropped]
        found["float64" if double else "bfloat16"] = apart | {"counted": counted}
    if not rank:
        with open("ends.json", "w") as file:
            json.dump(found, file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    mp.start_processes(work, (sys.argv[1],), nprocs=RANKS, start_method="fork")
