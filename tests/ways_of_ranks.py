"""Every way of gating on ranks that compete, in float64, against one process that has all rows.

``python ways_of_ranks.py 7,3``: so many rows on so many ranks, which are forked. Writes for each
way, to ``ways.json``, how far the gradient is from that of one process, and how far it would be if
each rank ranked its own rows.
"""

import contextlib
import json
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel

from topk_plugin import TopK, attach

FRACTION = 0.5


class Critic(nn.Module):
    """One score a row, or a tuple of several."""

    def __init__(self, outputs=1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(outputs))
        self.shift = 0.0  # of each row's score

    def forward(self, x):
        features = self.body(x)
        scores = tuple(head(features) + self.shift for head in self.heads)
        return scores[0] if len(scores) == 1 else scores


def networks(outputs=1):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    return generator, Critic(outputs)


def gradient(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def loss_of(output):
    heads = output if isinstance(output, tuple) else (output,)
    return sum(softplus(-(1 + n) * head).mean() for n, head in enumerate(heads))


def total_of(output):
    return softplus(-output).sum()


def energy_of(output):
    return softplus(output).mean()


def kept_alone(output, k, low=False):
    """The literal form: the k best rows, by the mean of the heads."""
    heads = output if isinstance(output, tuple) else (output,)
    ranking = torch.stack([head.flatten() for head in heads]).mean(dim=0)
    order = (ranking if low else -ranking).argsort(stable=True)[:k]
    rows = tuple(head[order] for head in heads)
    return rows if isinstance(output, tuple) else rows[0]


WAYS = {
    "line": {},
    "line, sum": {"loss": total_of, "settings": {"reduction": "sum"}},
    "line, energy": {"loss": energy_of, "low": True},
    "line, ties": {"ties": True},
    "line, of bad samples on rank 0": {"bad": True},
    "attached": {"how": "attach"},
    "attached, of bad samples on rank 0": {"how": "attach", "bad": True},
    "attached, two heads": {"how": "attach", "outputs": 2},
    "attached, named heads": {"how": "attach", "outputs": 2, "settings": {"heads": (0, 1)}},
    "score gate": {"how": "attach", "settings": {"gate": "score"}},
    "marked": {"how": "marked"},
    "marked, sum": {"how": "marked", "loss": total_of, "settings": {"reduction": "sum"}},
    "frozen": {"how": "attach", "frozen": True},
    "critic in DDP": {"how": "attach", "wrapped": True},
    "micro-batches": {"steps": 2},
    "micro-batches, attached": {"how": "attach", "steps": 2},
}


def one_step(sizes, rank, scope, how="line", loss=loss_of, settings=None, low=False, ties=False,
             bad=False, outputs=1, frozen=False, wrapped=False, steps=1):  # fmt: skip
    """One generator step on a rank: its gradient, that of one process, and the rows it kept."""
    z = torch.randn(steps, sum(sizes), 3, generator=torch.Generator().manual_seed(1)).double()
    if ties:
        z[:, -2:] = z[:, :1]
    shift = torch.zeros(sum(sizes), 1)
    shift[: sizes[0] if bad else 0] = -100
    generator, critic = networks(outputs)
    critic.requires_grad_(not frozen)
    critic.shift = shift.split(sizes)[rank]
    samples = DistributedDataParallel(generator)
    called = DistributedDataParallel(critic) if wrapped else critic
    optimizer = torch.optim.SGD(generator.parameters(), 0.0)
    topk = TopK(gamma=FRACTION, nu=FRACTION, scope=scope, **(settings or {}))
    topk.end_epoch()
    kept = []
    topk.observers.append(lambda step: kept.extend(int(call.kept.sum()) for call in step.calls))
    with contextlib.ExitStack() as stack:
        if how != "line":
            stack.enter_context(attach(called, topk, generator=generator))
        if how == "marked":
            stack.enter_context(topk.generator_step())
        if steps > 1:
            stack.enter_context(topk.accumulate(steps=steps))
        gate = topk if how == "line" else lambda output: output
        losses = [loss(gate(called(samples(own.split(sizes)[rank])))) / steps for own in z]
        sum(losses).backward()
        optimizer.step()

    alone, critic = networks(outputs)
    critic.shift = shift.repeat(steps, 1)
    loss(kept_alone(critic(alone(z.flatten(0, 1))), topk.k(sum(sizes) * steps), low)).backward()
    return gradient(generator), gradient(alone), sum(kept)


def work(rank, sizes):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = f"file://{os.getcwd()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=len(sizes))
    found = {}
    for name, way in WAYS.items():
        errors = {}
        for scope in ("global", "rank"):
            mine, alone, kept = one_step(sizes, rank, scope, **way)
            errors[scope] = float((mine - alone).norm() / alone.norm())
            if scope == "global":
                errors["kept on rank 0"] = kept
        found[name] = errors
    if not rank:
        with open("ways.json", "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[1].split(",")]
    mp.start_processes(work, (sizes,), nprocs=len(sizes), start_method="fork")
