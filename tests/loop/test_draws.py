"""Epochs of loops that draw each batch by a pass of its own; `topk.step()` is a generator step."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from topk_plugin import TopK, attach

DATA = torch.arange(20.0).reshape(10, 2)


def loader(data=DATA, **options) -> DataLoader:
    return DataLoader(data, **{"batch_size": 4, **options})


def discarded(source: DataLoader) -> Iterator[Any]:
    while True:
        yield next(iter(source))


def kept(source: DataLoader) -> Iterator[Any]:
    while True:
        batches = iter(source)
        yield next(batches)


def broken_off(source: DataLoader) -> Iterator[Any]:
    while True:
        for batch in source:
            yield batch
            break


def built_anew(source: DataLoader) -> Iterator[Any]:
    while True:
        yield next(iter(loader(source.dataset, batch_size=source.batch_size)))


WAYS = [discarded, kept, broken_off, built_anew]
every_way = pytest.mark.parametrize("way", WAYS)
Way = Callable[[DataLoader], Iterator[Any]]


def epochs(topk: TopK, draw: Iterator[Any], steps: int, draws: int = 1) -> list[int]:
    """The epoch of each generator step, ``draws`` batches before each."""
    seen = []
    for _ in range(steps):
        for _ in range(draws):
            next(draw)
        seen.append(topk.epoch)
        topk.step()
    return seen


@every_way
def test_as_many_as_a_pass_has_are_an_epoch(topk, tracker, way):
    assert epochs(topk, way(loader()), 9) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    tracker.stop()
    assert topk.epoch == 3
    assert topk.training.progress.told_by == (
        "by batches drawn one at a time, 3 of 10 samples a pass"
    )


@pytest.mark.parametrize("way", [discarded, kept, broken_off])
def test_a_last_batch_that_is_dropped(topk, tracker, way):
    source = loader(batch_size=3, drop_last=True)
    assert epochs(topk, way(source), 7) == [0, 0, 0, 1, 1, 1, 2]


@every_way
def test_a_batch_of_all_data_is_a_pass(topk, tracker, way):
    # of batches that are discarded this is known from the second one on
    expected = [0, 1, 2, 3] if way in (kept, broken_off) else [0, 0, 1, 2]
    assert epochs(topk, way(loader(batch_size=10)), 4) == expected


@pytest.mark.parametrize("way", [discarded, built_anew])
def test_several_for_each_generator_step(topk, tracker, way):
    # for the second step it is not known yet
    assert epochs(topk, way(loader()), 7, draws=2) == [0, 0, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("way", [discarded, kept])
def test_persistent_workers(topk, tracker, way):
    source = loader(num_workers=1, persistent_workers=True)
    assert epochs(topk, way(source), 7) == [0, 0, 0, 1, 1, 1, 2]


@every_way
def test_batches_to_look_at_are_none_of_them(topk, tracker, way):
    source = loader()
    next(iter(source)), next(iter(source))
    assert epochs(topk, way(source), 7) == [0, 0, 0, 1, 1, 1, 2]


@every_way
def test_evaluations_between(topk, tracker, way):
    source, seen = loader(), []
    draw = way(source)
    for _ in range(3):
        seen += epochs(topk, draw, 3)
        assert len(list(source)) == 3
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_data_that_are_drawn_beside_others(topk, tracker):
    """The last to deliver count, as of two loaders that are iterated."""
    first, second, seen = loader(), loader(DATA[:8]), []
    for _ in range(5):
        next(iter(first)), next(iter(second))
        seen.append(topk.epoch)
        topk.step()
    assert seen == [0, 0, 1, 1, 2]


def test_data_drawn_in_turns_never_end_an_epoch_by_one_batch(topk, tracker):
    draws = [kept(loader()), kept(loader(DATA[:8]))]
    for step in range(6):
        next(draws[step % 2])
        topk.step()
    assert topk.epoch == 0


def test_a_pass_that_is_cut_short_after_its_first_batch(topk, tracker):
    """Known as one when the next pass gives more than that."""
    source, seen = loader(), []
    for cut in (3, 1, 3):
        for i, _ in enumerate(source):
            seen.append(topk.epoch)
            topk.step()
            if i + 1 == cut:
                break
    assert seen == [0, 0, 0, 1, 1, 2, 2]
    tracker.stop()
    assert topk.epoch == 3


def test_the_last_pass_cut_short_after_its_first_batch(topk, tracker):
    for _ in loader():
        topk.step()
        break
    tracker.stop()
    assert topk.epoch == 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(2) for _ in count())


@pytest.mark.parametrize("way", [discarded, kept, broken_off])
def test_streams_have_no_passes(topk, tracker, way):
    assert epochs(topk, way(loader(Stream())), 9) == [0] * 9


@every_way
def test_a_loader_that_is_named(way):
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)
    topk = TopK(gamma=0.5, nu=0.1, direction="high")
    opt_g, opt_d = (torch.optim.SGD(net.parameters(), 0.1) for net in (G, D))
    source, seen = loader(), []
    draw = way(source)
    with attach(D, topk, generator=G, loader=source):
        for _ in range(7):
            x = next(draw)
            opt_d.zero_grad()
            (D(G(torch.randn(4, 2)).detach()).mean() - D(x).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            (-D(G(torch.randn(4, 2))).mean()).backward()
            opt_g.step()
            seen.append(topk.epoch)
    assert seen == [0, 0, 0, 1, 1, 1, 2]
    assert topk.steps == 7
