"""When an epoch ends, told by real DataLoaders; `topk.step()` stands for a generator step."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from topk_plugin import TopK, attach
from topk_plugin.errors import ConfigError
from topk_plugin.loop.epochs import EpochTracker

DATA = torch.arange(20.0).reshape(10, 2)


def loader(**options) -> DataLoader:
    return DataLoader(DATA, **{"batch_size": 4, **options})


def test_a_pass_ends_an_epoch_at_stop_iteration(topk, tracker):
    seen = []
    for epoch in range(3):
        for _ in loader():
            seen.append(topk.epoch)
            topk.step()
        assert topk.epoch == epoch + 1
    assert seen == [0] * 3 + [1] * 3 + [2] * 3
    assert [topk.epoch, topk.k(8), tracker.fed] == [3, 1, True]


def test_one_loader_iterated_again_and_again(topk, tracker):
    same = loader(shuffle=True)
    for _ in range(4):
        for _ in same:
            topk.step()
    assert topk.epoch == 4


def test_asking_again_after_the_end_counts_once(topk, tracker):
    batches = iter(loader())
    for _ in range(3):
        next(batches)
        topk.step()
    for _ in range(3):
        assert next(batches, None) is None
    del batches
    gc.collect()
    assert topk.epoch == 1


def test_a_pass_without_generator_steps_ends_nothing(topk, tracker):
    for _ in loader():
        pass
    assert topk.epoch == 0
    assert not tracker.fed
    topk.step()
    assert topk.epoch == 0


def test_generator_steps_after_a_pass_are_not_fed_by_it(topk, tracker):
    for _ in loader():
        topk.step()
    topk.step()
    for _ in loader():  # critic steps alone
        pass
    assert topk.epoch == 1


def test_fewer_generator_steps_than_batches(topk, tracker):
    for _ in range(3):
        for i, _ in enumerate(loader()):
            if i == 1:
                topk.step()
    assert topk.epoch == 3


def test_every_n_steps_leaves_loaders_alone():
    topk = TopK(gamma=0.5, direction="high", every=4)
    tracker = EpochTracker(topk)
    tracker.start()
    for _ in range(3):
        for _ in loader():
            topk.step()
    tracker.stop()
    assert topk.epoch == 2
    assert tracker.fed


# Passes that are cut short


def test_a_break_ends_the_epoch_when_the_iterator_is_discarded(topk, tracker):
    for epoch in range(3):
        for i, _ in enumerate(loader()):
            topk.step()
            if i == 1:
                break
        assert topk.epoch == epoch + 1


def test_an_iterator_that_is_kept_ends_its_epoch_only_when_replaced(topk, tracker):
    source = loader()
    for epoch in range(3):
        batches = iter(source)  # the one before is discarded
        assert topk.epoch == epoch
        for _ in range(2):
            next(batches)
            topk.step()
    del batches
    assert topk.epoch == 3


def test_an_iterator_discarded_without_feeding_is_a_peek(topk, tracker):
    next(iter(loader()))
    fixed = next(iter(loader(shuffle=True)))
    assert fixed.shape == (4, 2)
    gc.collect()
    assert topk.epoch == 0
    for _ in loader():
        topk.step()
    assert topk.epoch == 1


def test_a_peek_between_a_batch_and_its_generator_step(topk, tracker):
    peeked = loader(shuffle=True)
    for _ in range(2):
        for _ in loader():
            next(iter(peeked))
            topk.step()
    assert topk.epoch == 2


def test_a_peek_at_the_loader_that_feeds(topk, tracker):
    source = loader()
    for _ in range(2):
        next(iter(source))
        for _ in source:
            topk.step()
            next(iter(source))
    assert topk.epoch == 2


def test_endless_iteration_that_restarts_on_stop_iteration(topk, tracker):
    def forever(source):
        while True:
            yield from source

    batches, seen = forever(loader()), []
    for _ in range(8):
        next(batches)
        seen.append(topk.epoch)
        topk.step()
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2]


def test_the_restart_by_hand(topk, tracker):
    source = loader()
    batches, seen = iter(source), []
    for _ in range(8):
        try:
            next(batches)
        except StopIteration:
            batches = iter(source)
            next(batches)
        seen.append(topk.epoch)
        topk.step()
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_batch_held_for_several_generator_steps(topk, tracker):
    for _ in loader():
        for _ in range(5):
            topk.step()
    assert (topk.epoch, topk.steps) == (1, 15)


def test_an_exception_in_the_loop_ends_it_like_a_break(topk, tracker):
    def train():
        for i, _ in enumerate(loader()):
            topk.step()
            if i == 1:
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        train()
    gc.collect()
    assert topk.epoch == 1


# Samplers, streams and workers


def test_workers(topk, tracker):
    source = loader(num_workers=1)
    for epoch in range(2):
        for _ in source:
            assert topk.epoch == epoch
            topk.step()
    assert topk.epoch == 2


def test_persistent_workers(topk, tracker):
    """Their iterator is one object, reset for each pass; passes whole, broken off, and idle."""
    source = loader(num_workers=1, persistent_workers=True)
    ended = []
    for stop_after in (3, 1, 0, 3, 3):  # 0: critic steps only
        for i, _ in enumerate(source):
            if stop_after:
                topk.step()
            if i + 1 == stop_after:
                break
        ended.append(topk.epoch)
    # a break keeps the iterator, which the next pass resets
    next(iter(source))
    ended.append(topk.epoch)
    del source
    gc.collect()
    assert topk.epoch == 4
    assert ended == [0, 1, 2, 2, 3, 4]


# Several loaders


def test_two_loaders_zipped_are_one_epoch_a_pass(topk, tracker):
    for epoch in range(3):
        for _ in zip(loader(shuffle=True), loader(shuffle=True), strict=True):
            topk.step()
        assert topk.epoch == epoch + 1


def test_of_two_loaders_the_last_one_to_deliver_counts_and_the_other_is_told(topk, tracker):
    short, looks = DataLoader(DATA[:6], batch_size=2), DataLoader(DATA[:4], batch_size=2)
    sources = iter(short)
    for _ in range(3):
        for _ in loader(batch_size=2):
            source = next(sources, None)
            if source is None:
                sources = iter(short)
                next(sources)
            topk.step()
        list(looks)
    assert topk.epoch == 4
    assert topk.training.progress.told_by == (
        "by passes of a DataLoader over 6 samples, which deliver last for a step, after another's "
        "over 10 samples (--every N counts by steps instead)"
    )


def test_two_loaders_zipped_of_different_length(topk, tracker):
    for epoch in range(3):
        for _ in zip(loader(), loader(batch_size=2), strict=False):
            topk.step()
        assert topk.epoch == epoch + 1


def test_a_short_loader_that_is_restarted_beside_the_one_that_feeds(topk, tracker):
    """Photographs and paintings: the inner loader starts over, yet the outer pass is the epoch."""
    for _ in range(2):
        short = loader(batch_size=5)
        others = iter(short)
        for _ in loader(batch_size=2):
            try:
                next(others)
            except StopIteration:
                others = iter(short)
                next(others)
            topk.step()
    assert topk.epoch >= 2


def test_a_validation_loader_in_the_loop(topk, tracker):
    validation = loader(batch_size=2)
    for epoch in range(3):
        for _ in loader():
            topk.step()
            for _ in validation:
                pass
        assert topk.epoch == epoch + 1
        for _ in validation:
            pass
        assert topk.epoch == epoch + 1


def test_a_loader_for_the_critic_and_one_for_the_generator(topk, tracker):
    critics = loader(batch_size=2)
    for epoch in range(2):
        for _ in critics:
            pass
        for _ in loader():
            topk.step()
        assert topk.epoch == epoch + 1


# attach(..., loader=)


class Nets:
    def __init__(self):
        self.critic, self.generator = nn.Linear(2, 1), nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.generator.parameters(), 0.1)

    def step(self):
        self.optimizer.zero_grad()
        (-self.critic(self.generator(torch.randn(4, 3))).mean()).backward()
        self.optimizer.step()


def test_attach_counts_the_passes_of_its_loader_alone(topk):
    nets, mine, other = Nets(), loader(), loader()
    with attach(nets.critic, topk, loader=mine):
        for _ in range(2):
            for _ in mine:
                nets.step()
        assert topk.epoch == 2
        for _ in other:
            nets.step()
        assert topk.epoch == 2
        for _ in zip(mine, other, strict=True):
            nets.step()
        assert topk.epoch == 3
    for _ in mine:
        nets.step()
    assert (topk.epoch, topk.steps) == (3, 12)


def test_attach_without_a_loader_leaves_the_epoch_to_the_user(topk):
    nets = Nets()
    with attach(nets.critic, topk):
        for _ in loader():
            nets.step()
        assert topk.epoch == 0
        topk.end_epoch()
    assert topk.epoch == 1


@pytest.mark.parametrize(
    "wrong", [[DATA], iter([DATA]), DATA, "loader", 3], ids=lambda wrong: type(wrong).__name__
)
def test_a_loader_that_is_no_dataloader(topk, wrong):
    nets = Nets()
    with pytest.raises(ConfigError) as caught:
        attach(nets.critic, topk, loader=wrong)
    for words in (
        f"found a {type(wrong).__name__} as the loader",
        "DataLoader",
        "topk.end_epoch()",
    ):
        assert words in str(caught.value)
    with attach(nets.critic, topk):  # nothing was left attached
        pass


def test_the_iterator_of_a_loader_is_no_loader(topk):
    nets = Nets()
    with pytest.raises(ConfigError, match="DataLoader"):
        attach(nets.critic, topk, loader=iter(loader()))


# Nothing stays behind


def methods() -> list:
    return [_BaseDataLoaderIter.__dict__[name] for name in ("__init__", "__next__", "_reset")]


def test_the_methods_of_dataloader_iterators_are_restored(topk):
    before = methods()
    first, second = EpochTracker(topk), EpochTracker(TopK())
    first.start()
    second.start()
    during = methods()
    assert all(a is not b for a, b in zip(before, during, strict=True))
    first.stop()
    assert methods() == during  # one still watches
    second.stop()
    second.stop()
    assert all(a is b for a, b in zip(before, methods(), strict=True))


def test_attach_restores_them_after_an_exception(topk):
    before, nets = methods(), Nets()
    with pytest.raises(RuntimeError), attach(nets.critic, topk, loader=loader()):
        raise RuntimeError
    assert all(a is b for a, b in zip(before, methods(), strict=True))


def test_a_pass_begun_before_watching_still_ends(topk):
    batches = iter(loader())
    next(batches)
    tracker = EpochTracker(topk)
    tracker.start()
    for _ in batches:
        topk.step()
    tracker.stop()
    assert topk.epoch == 1


def test_a_stopped_tracker_hears_nothing_more(topk, tracker):
    for i, _ in enumerate(loader()):
        topk.step()
        if i == 0:
            tracker.stop()
    gc.collect()
    assert topk.epoch == 0


def test_iterators_are_not_kept_alive(topk, tracker):
    import weakref

    batches = iter(loader())
    next(batches)
    topk.step()
    seen = weakref.ref(batches)
    del batches
    assert seen() is None
