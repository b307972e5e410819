"""When an epoch ends, where a sampler or a stream says how long a pass over the data is."""

import gc

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

DATA = torch.arange(20.0).reshape(10, 2)


def loader(**options) -> DataLoader:
    return DataLoader(DATA, **{"batch_size": 4, **options})


class Endless(Sampler):
    """Indices without end, as StyleGAN's."""

    def __iter__(self):
        n = 0
        while True:
            yield n % len(DATA)
            n += 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class Sized(Stream):
    def __len__(self):
        return len(DATA)


@pytest.mark.parametrize("batch_size", [5, 4, 3])
def test_an_endless_sampler_ends_an_epoch_as_it_passes_the_size(topk, tracker, batch_size):
    batches, seen = iter(loader(sampler=Endless(), batch_size=batch_size)), []
    for _ in range(3 * 10):
        next(batches)
        seen.append(topk.epoch)
        topk.step()
    # a new epoch begins with the first batch after `size` samples were delivered
    expected, samples, epoch = [], 0, 0
    for _ in range(30):
        if samples >= 10:
            samples, epoch = samples - 10, epoch + 1
        expected.append(epoch)
        samples += batch_size
    assert seen == expected
    assert abs(seen[-1] - (30 * batch_size - 1) // 10) <= 1


def test_the_last_partial_pass_of_an_endless_sampler_is_no_epoch(topk, tracker):
    batches = iter(loader(sampler=Endless(), batch_size=5))
    for _ in range(5):  # two passes and a half
        next(batches)
        topk.step()
    del batches
    gc.collect()
    assert topk.epoch == 2


def test_an_endless_sampler_cut_in_its_first_pass(topk, tracker):
    batches = iter(loader(sampler=Endless(), batch_size=3))
    for _ in range(2):
        next(batches)
        topk.step()
    del batches
    gc.collect()
    assert topk.epoch == 1  # as any pass that is broken off


def test_a_sampler_of_more_samples_than_the_data_set(topk, tracker):
    """Size times the number of passes, in one iterator, as BigGAN's MultiEpochSampler."""
    sampler = RandomSampler(DATA, replacement=True, num_samples=30)
    seen = []
    for _ in loader(sampler=sampler, batch_size=5):
        seen.append(topk.epoch)
        topk.step()
    assert seen == [0, 0, 1, 1, 2, 2]
    assert topk.epoch == 3


def test_a_sampler_of_fewer_samples(topk, tracker):
    for _ in range(2):
        for _ in loader(sampler=range(6), batch_size=2):
            topk.step()
    assert topk.epoch == 2


def test_drop_last(topk, tracker):
    for _ in range(3):
        for _ in loader(drop_last=True):
            topk.step()
    assert topk.epoch == 3


@pytest.mark.parametrize("labelled", [False, True])
def test_batches_of_a_batch_sampler_are_counted_by_their_rows(topk, tracker, labelled):
    class Batches(Sampler):
        def __iter__(self):
            while True:
                yield [0, 1, 2, 3, 4]

    data = TensorDataset(DATA, torch.arange(10)) if labelled else DATA
    batches, seen = iter(DataLoader(data, batch_sampler=Batches())), []
    for _ in range(6):
        next(batches)
        seen.append(topk.epoch)
        topk.step()
    assert seen == [0, 0, 1, 1, 2, 2]


def test_a_batch_sampler_of_one_pass(topk, tracker):
    for _ in range(2):
        for _ in DataLoader(DATA, batch_sampler=[[0, 1, 2], [3, 4], [5]]):
            topk.step()
    assert topk.epoch == 2


def test_samples_that_are_not_batched(topk, tracker):
    for epoch in range(2):
        for _ in DataLoader(DATA, batch_size=None):
            assert topk.epoch == epoch
            topk.step()
    assert topk.epoch == 2


def test_a_data_set_of_ready_batches(topk, tracker):
    """Its length counts batches, not samples."""
    batches = list(torch.randn(6, 4, 2))
    for epoch in range(2):
        for _ in DataLoader(batches, batch_size=None):
            assert topk.epoch == epoch
            topk.step()
    assert topk.epoch == 2


def test_indices_in_bulk(topk, tracker):
    """A batch sampler given as the sampler: the data set is indexed by lists."""
    sampler = BatchSampler(Endless(), batch_size=5, drop_last=False)
    batches, seen = iter(DataLoader(DATA, sampler=sampler, batch_size=None)), []
    for _ in range(6):
        next(batches)
        seen.append(topk.epoch)
        topk.step()
    assert seen == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dataset", [Stream(), Sized()], ids=["without a length", "sized"])
def test_streams_end_at_stop_iteration(topk, tracker, dataset):
    for epoch in range(3):
        for _ in DataLoader(dataset, batch_size=4):
            topk.step()
        assert topk.epoch == epoch + 1
