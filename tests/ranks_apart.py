"""Two or three ranks of which one does something else: ``ranks_apart.py WHAT``."""

import datetime
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel
from ways_of_ranks import networks

from topk_plugin import TopK
from topk_plugin.core.direction import VOTING_STEPS
from topk_plugin.errors import RanksApart

SOON = datetime.timedelta(seconds=2)


def half(**settings):
    topk = TopK(gamma=0.5, nu=0.5, scope="global", **settings)
    topk.end_epoch()
    return topk


def backward(topk, loss=lambda scores: softplus(-scores).mean(), rows=4):
    generator, critic = networks()
    loss(topk(critic(generator(torch.randn(rows, 3))))).backward()
    return generator


def apart(topk):
    try:
        backward(topk)
    except RanksApart as error:
        print(f"rank {dist.get_rank()}: {error}", flush=True)
        os._exit(0)
    raise AssertionError


def dies(rank):
    if rank:
        os._exit(1)
    apart(half())


def never_comes(rank):
    if rank:
        time.sleep(30)
    apart(half())


def is_an_epoch_behind(rank):
    topk = half() if not rank else TopK(gamma=0.5, nu=0.5, scope="global")
    if not rank:
        apart(topk)
    backward(topk)  # nothing is gathered while k = B
    time.sleep(30)


def votes(rank):
    """Of three ranks two want high scores, and one low ones: in the first steps, and for good."""
    topk = half()
    sign = 1 if rank == 1 else -1
    kept = []
    topk.observers.append(lambda step: kept.extend((c.scores, c.kept) for c in step.calls))
    generator, critic = networks()
    optimizer = torch.optim.SGD(generator.parameters(), 0.0)
    for step in range(VOTING_STEPS + 2):
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(3 * step + rank)).double()
        softplus(sign * topk(critic(generator(z)))).mean().backward()
        optimizer.step()
    for scores, mask in kept:
        table = [torch.zeros_like(scores) for _ in range(3)]
        dist.all_gather(table, scores)
        best = torch.cat(table).topk(6).indices
        assert mask.tolist() == [4 * rank + n in best for n in range(4)]
    assert topk.direction == "high"
    assert topk.training.vote.how() == f"by {2 * VOTING_STEPS} of {3 * VOTING_STEPS} votes"


def batches_that_grow(rank):
    """Also on one rank alone."""
    topk = half(direction="high")
    for sizes in ((2, 2, 2), (4, 2, 3), (2, 9, 1), (0, 3, 3), (1, 0, 1)):
        generator, critic = networks()
        z = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(1)).double()
        wrapped = DistributedDataParallel(generator)
        scores = topk(critic(wrapped(z.split(sizes)[rank])))
        (softplus(-scores).sum() / max(1, len(scores))).backward()
        alone, critic = networks()
        softplus(-critic(alone(z)).flatten().topk(topk.k(len(z))).values).mean().backward()
        for one, other in zip(generator.parameters(), alone.parameters(), strict=True):
            assert (one.grad - other.grad).abs().max() <= 1e-12


def groups(rank):
    """Ranks 0 and 2 train one generator, rank 1 trains its own."""
    pair, single = dist.new_group([0, 2]), dist.new_group([1])
    topk = half(direction="high", group=single if rank == 1 else pair)
    z = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    generator, critic = networks()
    softplus(-topk(critic(generator(z[rank])))).mean().backward()
    if rank != 1:
        for p in generator.parameters():
            dist.all_reduce(p.grad, group=pair)
            p.grad /= 2
    alone, critic = networks()
    mine = z[1] if rank == 1 else z[::2].flatten(0, 1)
    softplus(-critic(alone(mine)).flatten().topk(len(mine) // 2).values).mean().backward()
    for one, other in zip(generator.parameters(), alone.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-12


def work(rank, what, ranks):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = f"file://{os.getcwd()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=SOON)
    globals()[what](rank)
    if not rank:
        print("done", flush=True)


if __name__ == "__main__":
    ranks = 2 if sys.argv[1] in ("dies", "never_comes", "is_an_epoch_behind") else 3
    context = mp.start_processes(
        work, (sys.argv[1], ranks), nprocs=ranks, start_method="fork", join=False
    )
    if ranks == 2:
        context.processes[0].join(60)
        context.processes[1].kill()
    else:
        while not context.join():
            pass
