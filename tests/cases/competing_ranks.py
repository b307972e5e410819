"""Ranks that torchrun starts, with batches of 5 and 3 rows, say: ``competing_ranks.py WAY 5,3``.

Without torchrun it is one process with all rows, or, with a third argument, one that forks ranks.
Where HAND is set, top-k by hand is in it.
"""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

way, sizes = sys.argv[1], [int(size) for size in sys.argv[2].split(",")]


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2))
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2 if way == "heads" else 1))

    def forward(self, x):
        x = self.net(x)
        scores = [head(x) for head in self.heads]
        return scores if way == "heads" else scores[0]


def loss(output, sign):
    heads = output if way == "heads" else (output,)
    return sum(F.softplus(sign * head).mean() for head in heads)


def generator_loss(output, epoch):
    if "HAND" not in os.environ:
        return loss(output, -1)
    heads = output if way == "heads" else (output,)
    k = int(max(0.5**epoch, 0.25) * sum(sizes) + 1e-9)
    if not epoch:  # k = B: as without top-k, a mean over the ranks
        parts = zip(*(head.split(sizes) for head in heads), strict=True)
        return sum(sum(F.softplus(-part).mean() for part in rank) for rank in parts) / len(sizes)
    order = sum(heads).flatten().topk(k).indices
    return sum(F.softplus(-head[order]).mean() for head in heads)


def wrapped(network):
    if "fsdp2" not in way:
        return DistributedDataParallel(network)
    from torch.distributed.fsdp import fully_shard

    for part in [*network.modules()]:
        if "nested" in way and isinstance(part, nn.Linear):
            fully_shard(part)
    return fully_shard(network)


def train(rendezvous=None):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    G, D = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), Critic()
    parallel, rank = rendezvous is not None, 0
    if parallel:
        dist.init_process_group("gloo", **rendezvous)
        rank = dist.get_rank()
        G, D = wrapped(G), wrapped(D)

    def own(rows):
        return rows.split(sizes)[rank] if parallel else rows

    opt_g, opt_d = torch.optim.SGD(G.parameters(), 0.2), torch.optim.SGD(D.parameters(), 0.2)
    shuffled = torch.Generator().manual_seed(1)
    loader = DataLoader(torch.randn(4 * sum(sizes), 2) + 1, sum(sizes), True, generator=shuffled)
    for epoch in range(4):
        for x in loader:
            share = len(own(x)) * len(sizes) / len(x) if parallel else 1.0
            opt_d.zero_grad()
            fake = G(own(torch.randn(len(x), 4)))
            if "undetached" not in way:
                fake = fake.detach()
            (share * (loss(D(own(x)), -1) + loss(D(fake), 1))).backward()
            opt_d.step()
            opt_g.zero_grad()
            D.requires_grad_(way != "frozen")
            generator_loss((D.module if parallel and way == "frozen" else D)(
                G(own(torch.randn(len(x), 4)))), epoch).backward()  # fmt: skip
            D.requires_grad_(True)
            opt_g.step()
    states = [getattr(net, "module", net).state_dict() for net in (G, D)]
    if parallel and "fsdp2" in way:
        states = [{n: value.full_tensor() for n, value in state.items()} for state in states]
    if not rank:
        torch.save(states, "weights.pt")
    if parallel:
        dist.destroy_process_group()


def forked(rank):
    store = f"file://{os.getcwd()}/store"
    train({"init_method": store, "rank": rank, "world_size": len(sizes)})


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        train({})
    elif sys.argv[3:]:
        mp.start_processes(forked, nprocs=len(sizes), start_method="fork")
    else:
        train()
