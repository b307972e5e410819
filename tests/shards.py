"""Loaders of two ranks, and what each of them counts; spawned processes import it by its name."""

import torch.distributed as dist
from loops import DATA, Gan, batches_of, passes
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, Subset
from torch.utils.data.distributed import DistributedSampler

from topk_plugin import attach


class EndlessShard(Sampler):
    """Every second index without end, from the one of this rank on."""

    def __init__(self, rank, num_replicas):
        self.rank, self.num_replicas = rank, num_replicas

    def __iter__(self):
        while True:
            yield from range(self.rank, len(DATA), self.num_replicas)


class Hidden(EndlessShard):
    def __init__(self, rank, world):
        super().__init__(rank, world)
        self.num_replicas, self._world_size = 1, world

    def __iter__(self):
        while True:
            yield from range(self.rank, len(DATA), self._world_size)


class Stream(IterableDataset):
    def __init__(self, rank):
        self.rank = rank

    def __iter__(self):
        return iter(DATA[self.rank :: 2])


class Endless(Sampler):
    """A shard of its own without end."""

    def __iter__(self):
        while True:
            yield from range(16)


def loaders(rank: int) -> dict[str, tuple[DataLoader, int]]:
    """Of a rank of two, with two batches of eight a pass; and how many a whole pass has."""
    shard = Subset(DATA, range(rank, 32, 2))
    split = DistributedSampler(DATA, 2, rank)
    return {
        "a shard of its own": (DataLoader(shard, 8), 2),
        "a shard without end": (DataLoader(shard, 8, sampler=Endless()), 2),
        "a split sampler": (batches_of(sampler=split), 2),
        "in a batch sampler": (DataLoader(DATA, batch_sampler=BatchSampler(split, 8, True)), 2),
        "split without end": (batches_of(sampler=EndlessShard(rank, 2)), 2),
        "with a hidden number": (batches_of(sampler=Hidden(rank, 2)), 2),
        "streams": (DataLoader(Stream(rank), 8), 2),
        "the same data on each": (batches_of(), 4),
    }


def rank_of_two(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, (loader, batches) in loaders(rank).items():
        gan = Gan()
        with attach(gan.critic, gan.topk, loader=loader):
            while len(gan.epochs) < 3 * batches:
                for x in loader:
                    gan.train(x)
                    if len(gan.epochs) == 3 * batches:
                        break
        assert gan.epochs == passes(*3 * [batches]), name
    dist.destroy_process_group()
