"""Batches that are delivered before the ones in front of them were trained on."""

import queue
import threading
from itertools import islice

import pytest
from loops import DATA, Endless, Gan, batches_of, passes
from torch.utils.data import DataLoader, RandomSampler


class Prefetcher:
    """Holds the next batch while the present one is trained on; made anew for each pass."""

    def __init__(self, loader):
        self.batches = iter(loader)
        self.fetch()

    def fetch(self):
        self.waiting = next(self.batches, None)

    def next(self):
        batch = self.waiting
        self.fetch()
        return batch


def prefetched(loader):
    source = Prefetcher(loader)
    while (batch := source.next()) is not None:
        yield batch


class KnowsTheLast:
    """Looks one batch ahead, to know which one is the last."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        batches = iter(self.loader)
        present = next(batches)
        for following in batches:
            yield present
            present = following
        self.at_last = True
        yield present


def some_ahead(loader, n):
    """Holds the next ``n`` batches."""
    waiting = []
    for batch in loader:
        waiting.append(batch)
        if len(waiting) > n:
            yield waiting.pop(0)
    yield from waiting


def to_its_length(loader):
    """One ahead; it knows how many there are, and never asks for more."""
    batches = iter(loader)
    waiting = next(batches)
    for _ in range(len(loader) - 1):
        present, waiting = waiting, next(batches)
        yield present
    yield waiting


def queued(loader, n=2):
    """A thread fetches, up to ``n`` batches ahead and one in its hand."""
    waiting = queue.Queue(n)

    def fetch():
        for batch in loader:
            waiting.put(batch)
        waiting.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    while (batch := waiting.get()) is not None:
        yield batch


def for_ever(loader):
    while True:
        yield from loader


WRAPPERS = {
    "prefetcher": prefetched,
    "knows the last": KnowsTheLast,
    "three ahead": lambda loader: some_ahead(loader, 3),
    "more than a pass": lambda loader: some_ahead(loader, 6),
    "to its length": to_its_length,
    "thread": queued,
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("rebuilt", [False, True], ids=["one loader", "a loader a pass"])
def test_the_last_batches_of_a_pass_are_trained_with_its_k(wrapper, rebuilt):
    """The epoch ended with the StopIteration, some batches early."""
    gan, source = Gan(), batches_of()
    with gan.watched():
        for _ in range(3):
            for x in wrapper(batches_of() if rebuilt else source):
                gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4), 3)
    assert gan.kept[::4] == [8, 4, 2]
    assert gan.counted == "by passes of a DataLoader over 32 samples"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fetched_ahead_across_the_ends_of_passes(n):
    gan = Gan()
    with gan.watched():
        for x in islice(some_ahead(for_ever(batches_of()), n), 14):
            gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4, 2), 4)  # a pass that is broken off, too


@pytest.mark.parametrize("n", [0, 1, 3])
def test_an_endless_sampler_that_is_fetched_ahead(n):
    gan = Gan()
    with gan.watched():
        for x in islice(some_ahead(batches_of(sampler=Endless()), n), 14):
            gan.train(x)
    assert gan.epochs == passes(4, 4, 4, 2)
    assert gan.ended == 3


def test_whole_passes_of_an_endless_sampler_all_count():
    """The last one's end is not seen: no batch follows."""
    gan = Gan()
    with gan.watched():
        for x in islice(batches_of(sampler=RandomSampler(DATA, True, 10**9)), 8):
            gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4), 2)


def test_a_loop_that_draws_several_batches_for_each_of_its_rounds():
    gan, source = Gan(), batches_of(4)
    with gan.watched():
        for _ in range(3):
            batches = iter(source)
            for _ in range(4):
                x, _ = next(batches), next(batches)
                gan.train(x)
            assert next(batches, None) is None
            assert gan.topk.epoch == gan.ended
    assert gan.epochs == passes(4, 4, 4)


def test_batches_that_are_skipped_are_not_fetched_ahead():
    """A loop that resumes in the middle of a pass."""
    gan = Gan()
    with gan.watched():
        for i, x in enumerate(islice(DataLoader(DATA.repeat(25, 1), 8, sampler=Endless()), 230)):
            if i >= 70:
                gan.train(x)
    assert gan.epochs == passes(30, 100, 30)


def test_kept_batches_that_were_fetched_ahead_in_the_first_pass():
    gan, kept = Gan(), []

    def remembered(batches):
        for batch in batches:
            kept.append(batch)
            yield batch
        yield from for_ever(kept)

    with gan.watched():
        for x in islice(remembered(prefetched(batches_of())), 14):
            gan.train(x)
    assert (gan.epochs, gan.ended) == (passes(4, 4, 4, 2), 3)


def test_a_thread_that_goes_on_across_the_ends_of_passes():
    """Its lead is known to within what it had fetched when the training began."""
    gan = Gan()
    with gan.watched():
        for x in islice(queued(for_ever(batches_of()), 1), 30):
            gan.train(x)
    ends = [i for i in range(1, 30) if gan.epochs[i] != gan.epochs[i - 1]]
    assert len(ends) == 7
    assert all(abs(end - 4 * (n + 1)) <= 2 for n, end in enumerate(ends))
    assert gan.ended >= 7


def test_no_epoch_ends_in_another_thread_than_the_one_that_trains():
    gan, threads = Gan(), []
    end_epoch = gan.topk.training.end_epoch

    def noted(told_by):
        threads.append(threading.current_thread())
        end_epoch(told_by)

    gan.topk.training.end_epoch = noted
    with gan.watched():
        for _ in range(3):
            for x in queued(batches_of()):
                gan.train(x)
    assert threads == 3 * [threading.main_thread()]


def test_accumulation_is_not_fetching_ahead():
    """Optimizers step after several batches; the critic was called for each."""
    gan = Gan()
    with gan.watched():
        for i, x in enumerate(islice(batches_of(4, sampler=Endless()), 24)):
            (-gan.critic(gan.generator(x.new_zeros(4, 3))).mean()).backward()
            gan.critic(x).mean().backward()
            if i % 4 == 3:
                for optimizer in (gan.of_critic, gan.of_generator):
                    optimizer.step()
                    optimizer.zero_grad()
    assert gan.ended == 3
    assert gan.topk.steps == 6


@pytest.mark.parametrize("drawn", [1, 4, 6, 9])
@pytest.mark.parametrize("endless", [for_ever, None], ids=["passes", "an endless sampler"])
@pytest.mark.parametrize("held", [False, True])
def test_batches_that_are_drawn_for_something_else_were_not_fetched_ahead(drawn, endless, held):
    """Images to look at, from the data that go on for ever; the last one may be kept."""
    gan = Gan()
    data = iter(endless(batches_of()) if endless else batches_of(sampler=Endless()))
    with gan.watched():
        looked_at = [next(data) for _ in range(drawn)][-1] if held else None
        for _ in range(0 if held else drawn):
            next(data)
        for _ in range(14):
            gan.train(next(data))
    first = 4 - drawn % 4 if drawn % 4 else 4
    assert gan.epochs == passes(first, 4, 4, 4, 4)[:14]
    assert looked_at is None or len(looked_at) == 8
