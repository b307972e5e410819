"""Ranks that share a data set, by a sampler that splits it, or that have a shard each."""

import pytest
import torch.multiprocessing as mp
from shards import Endless, rank_of_two
from torch.utils.data import BatchSampler

from topk_plugin.loop.passes import ranks_of


@pytest.mark.slow
def test_epochs_on_two_ranks(tmp_path):
    """A shard's pass was counted for as many as there are ranks."""
    mp.spawn(rank_of_two, (str(tmp_path / "store"),), nprocs=2)


@pytest.mark.parametrize(
    "name", ["num_replicas", "_num_replicas", "world_size", "num_processes", "_num_shards"]
)
def test_a_sampler_says_over_how_many_ranks_it_splits(name):
    sampler = Endless()
    assert ranks_of(BatchSampler(sampler, 8, True)) == 1
    setattr(sampler, name, 4)
    assert ranks_of(sampler) == 4
    assert ranks_of(BatchSampler(sampler, 8, True)) == 4
