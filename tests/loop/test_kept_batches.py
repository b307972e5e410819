"""Loops that ask a DataLoader for its batches once, and keep them; where another step feeds."""

import random
from itertools import cycle, islice

import pytest
import torch
from loops import Gan, batches_of, passes
from torch.utils.data import DataLoader


def test_a_cycle_goes_on_with_passes_as_long_as_the_first():
    """k stayed at the second pass's for ever; it falls each pass."""
    gan = Gan()
    with gan.watched():
        for x in islice(cycle(batches_of()), 16):
            gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4, 4), 4)
    assert gan.kept[::4] == [8, 4, 2, 1]
    assert "4 generator steps a pass, as in the first one" in gan.counted


def test_a_cycle_whose_generator_goes_first():
    gan = Gan()
    with gan.watched():
        for x in islice(cycle(batches_of()), 14):
            gan.train_generator()
            gan.train_critic(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4, 2), 3)


def test_a_cycle_with_several_critic_steps_a_generator_step():
    """Passes are of eight batches, of which every third trains the generator too."""
    gan = Gan()
    with gan.watched():
        for i, x in enumerate(islice(cycle(batches_of(4)), 32)):
            gan.train_critic(x)
            if i % 3 == 0:
                gan.train_generator()
    assert gan.epochs == [i // 8 for i in range(32) if i % 3 == 0]
    assert gan.ended == 4


def test_a_cycle_without_a_critic_that_steps():
    gan = Gan()
    with gan.watched():
        for _ in islice(cycle(batches_of()), 12):
            gan.train_generator()
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4), 3)


def test_a_cycle_beside_a_peek_that_is_kept():
    source = batches_of()
    peek = iter(source)
    next(peek)
    gan = Gan()
    with gan.watched():
        for x in islice(cycle(source), 12):
            gan.train(x)
    assert gan.epochs == passes(4, 4, 4)


def test_a_cycle_with_evaluations_of_the_same_data():
    gan, source = Gan(), batches_of()
    with gan.watched():
        for i, x in enumerate(islice(cycle(source), 16)):
            gan.train(x)
            if i % 3 == 1:
                for _ in source:
                    pass
    assert gan.epochs == passes(4, 4, 4, 4)


KEEP = {
    "list": list,
    "moved": lambda loader: [x.double().float() for x in loader],
    "shuffled by the loop": lambda loader: random.sample(list(loader), 4),
}


@pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP)
@pytest.mark.parametrize("critics", [1, 2], ids=["one critic step", "two"])
def test_a_list_of_batches(keep, critics):
    """Nothing was counted; with several critic steps a generator step a pass is as many of them."""
    gan = Gan()
    with gan.watched():
        batches = keep(batches_of())
        for _ in range(3):
            for i, x in enumerate(batches):
                gan.train_critic(x)
                if i % critics == 0:
                    gan.train_generator()
    assert (gan.epochs, gan.ended) == (passes(*3 * [4 // critics]), 3)
    assert "4 critic steps a pass, one a batch" in gan.counted


def test_a_list_and_a_generator_that_goes_first():
    gan = Gan()
    with gan.watched():
        batches = list(batches_of())
        for x in islice(cycle(batches), 10):
            gan.train_generator()
            gan.train_critic(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 2), 2)


def test_a_list_that_is_made_anew_for_each_pass_ends_with_it_once():
    gan = Gan()
    with gan.watched():
        for _ in range(3):
            for x in list(batches_of(shuffle=True)):
                gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4), 3)
    assert gan.counted == "by passes of a DataLoader over 32 samples"


def test_a_data_set_that_was_read_by_a_loader_and_is_cut_by_the_loop():
    """Its passes are as long as its samples make batches of the loop's."""
    gan = Gan()
    with gan.watched():
        data = torch.cat(list(batches_of(16)))
        for _ in range(3):
            for x in data[torch.randperm(32)].split(8):
                gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4), 3)


def test_two_trainings_over_one_list():
    first = Gan()
    second = Gan(first.topk)
    with first.watched(second.critic):
        batches = list(batches_of())
        for gan in (first, second):
            for x in islice(cycle(batches), 8):
                gan.train(x)
    assert first.epochs == 2 * passes(4, 4)


def test_critic_passes_and_generator_phases_from_noise():
    """The pass that the critic was trained on feeds the phase that follows; each ends once."""
    gan, source = Gan(), batches_of()
    with gan.watched():
        for _ in range(3):
            for x in source:
                gan.train_critic(x)
            for _ in range(10):
                gan.train_generator()
    assert (gan.epochs, gan.ended) == (passes(10, 10, 10), 3)


def test_generator_steps_between_the_passes_are_no_pass():
    """As many as a pass has, and more: the loader is asked again."""
    gan, source = Gan(), batches_of()
    with gan.watched():
        for _ in range(3):
            for x in source:
                gan.train(x)
            for _ in range(9):
                gan.train_generator()
    assert gan.ended == 3
    assert gan.epochs == [0] * 4 + [1] * 13 + [2] * 13 + [3] * 9


def test_statistics_of_the_data_feed_nothing():
    gan, source = Gan(), batches_of()
    with gan.watched() as tracker:
        sum(x.sum() for x in source)
        for _ in range(2):
            for x in source:
                gan.train(x)
            sum(x.sum() for x in batches_of(16))
    assert (gan.epochs, gan.ended) == (passes(4, 4), 2)
    assert tracker.early_passes(gan.topk.training) == 0


def test_two_loaders_of_which_one_is_kept():
    """The kept one feeds until it is exhausted, in the first pass of the other one."""
    gan = Gan()
    photos = cycle(DataLoader(torch.randn(32, 2), batch_size=16))
    with gan.watched():
        for _ in range(3):
            for x in batches_of(4):
                next(photos)
                gan.train(x)
    assert gan.ended == 3
    assert gan.epochs[8:] == [1] * 8 + [2] * 8


# Passes before the generator's first step through the critic


def warmed_up(gan: Gan, source) -> None:
    for epoch in range(4):
        for x in source():
            if epoch < 2:
                gan.warm_up(x)
            else:
                gan.train(x)


def test_warm_up_is_said():
    gan, source = Gan(), batches_of()
    with gan.watched() as tracker:
        warmed_up(gan, lambda: source)
    assert (gan.epochs, gan.ended) == (passes(4, 4), 2)
    assert tracker.early_passes(gan.topk.training) == 2


@pytest.mark.parametrize("rebuilt", [False, True])
def test_warm_up_counts_if_all_passes_do(rebuilt):
    """k is right at the first generator step through the critic."""
    gan, source = Gan(passes="all"), batches_of()
    with gan.watched() as tracker:
        sum(x.sum() for x in source)  # trains nothing
        warmed_up(gan, batches_of if rebuilt else lambda: source)
    assert (gan.epochs, gan.ended) == ([2] * 4 + [3] * 4, 4)
    assert gan.kept[0] == 2
    assert tracker.early_passes(gan.topk.training) == 0


@pytest.mark.filterwarnings("ignore:attach")
def test_a_checkpoint_in_the_warm_up_knows_of_its_passes():
    gan, source, saved = Gan(passes="all"), batches_of(), []
    with gan.watched():
        for _ in range(3):
            for x in source:
                gan.warm_up(x)
            saved.append(gan.topk.state_dict()["epoch"])
    assert saved == [1, 2, 3]


def test_passes_of_the_critic_alone_before_the_generator_begins():
    for passes_, first in (("adversarial", 0), ("all", 3)):
        gan, source = Gan(passes=passes_), batches_of()
        with gan.watched() as tracker:
            for epoch in range(5):
                for x in source:
                    gan.train_critic(x)
                    if epoch > 2:
                        gan.train_generator()
        assert gan.epochs == [first] * 4 + [first + 1] * 4
        assert tracker.early_passes(gan.topk.training) == (0 if first else 3)


def test_passes_of_the_critic_alone_later_count():
    gan, source = Gan(), batches_of()
    with gan.watched():
        for epoch in range(4):
            for x in source:
                gan.train_critic(x)
                if epoch % 2 == 0:
                    gan.train_generator()
    assert gan.epochs == [0] * 4 + [2] * 4
    assert gan.ended == 4


def test_warm_up_of_a_second_training_is_not_the_first_ones():
    gan, source = Gan(), batches_of()
    second = Gan(gan.topk)
    with gan.watched(second.critic) as tracker:
        warmed_up(gan, lambda: source)
        warmed_up(second, lambda: source)
    assert gan.epochs == 2 * passes(4, 4)
    trainings = gan.topk.trainings.all
    assert [training.progress.ended for training in trainings] == [2, 2]
    assert [tracker.early_passes(training) for training in trainings] == [2, 2]
