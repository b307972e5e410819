"""attach(loader=...): one that iterates another, what holds one, and one that feeds nothing."""

import pytest
import torch
from loops import DATA, Gan, batches_of, passes
from torch.utils.data import DataLoader, RandomSampler

from topk_plugin import attach
from topk_plugin.errors import ConfigError, NoEffectError


class Prepared(DataLoader):
    """A DataLoader that iterates another one, as accelerate's."""

    def __init__(self, base):
        self.base = base
        super().__init__(base.dataset, base.batch_size)

    def __iter__(self):
        yield from self.base


class Rebuilding(DataLoader):
    """One whose batches come from a DataLoader that is built for each pass."""

    def __iter__(self):
        yield from DataLoader(self.dataset, self.batch_size, shuffle=True)


class Wrapper:
    """No DataLoader, with one somewhere in its attributes."""

    def __init__(self, loader):
        self.parts = {"inner": [loader]}

    def __iter__(self):
        yield from self.parts["inner"][0]


class Outer:
    def __init__(self, loader):
        self.wrapped = Wrapper(loader)

    def __iter__(self):
        yield from self.wrapped


def prepared_by_accelerate(loader):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(loader)


WRAPPERS = {
    "prepared": Prepared,
    "accelerate": prepared_by_accelerate,
    "rebuilding": lambda loader: Rebuilding(loader.dataset, 8),
    "wrapper": Wrapper,
    "outer": Outer,
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("named", ["wrapper", "loader"])
def test_a_loader_that_iterates_another_one(wrapper, named):
    """No epoch ended, nothing was said."""
    gan, loader, other = Gan(), batches_of(), DataLoader(torch.randn(6, 2), 2)
    iterated = wrapper(loader)
    name = iterated if named == "wrapper" else loader
    with attach(gan.critic, gan.topk, loader=name) as attached:
        for _ in range(3):
            for x in iterated:
                gan.train(x)
                next(iter(other))
        assert attached.epochs_counted == "by passes of a DataLoader over 32 samples"
    assert (gan.epochs, gan.topk.epoch) == (passes(4, 4, 4), 3)


def test_a_loader_over_the_same_data_counts_only_as_long_as_the_named_one_is_silent():
    gan, named, other = Gan(), batches_of(), batches_of(4)
    with attach(gan.critic, gan.topk, loader=named):
        sum(x.sum() for x in other)
        for _ in range(2):
            for x in named:
                gan.train(x)
            for x in other:
                gan.train(x)
    assert gan.topk.epoch == 2


def train(gan: Gan, batches, loader) -> None:
    with attach(gan.critic, gan.topk, loader=loader):
        for x in batches:
            gan.train(x)


def test_another_loader_feeds():
    gan = Gan()
    with pytest.raises(NoEffectError) as caught:
        train(gan, DataLoader(torch.randn(32, 2), batch_size=8), batches_of())
    for words in ("DataLoader given as the loader delivered no batch", "another DataLoader did",
                  "topk.end_epoch()"):  # fmt: skip
        assert words in str(caught.value)
    assert gan.topk.steps == 1


def test_no_loader_feeds():
    """Told once a pass of it would have ended, or at the end."""
    for steps, counted in ((9, 5), (3, 3)):
        gan = Gan()
        with pytest.raises(NoEffectError, match="no DataLoader did"):
            train(gan, steps * [DATA[:8]], batches_of())
        assert gan.topk.steps == counted


def test_a_loader_that_was_read_before_it_was_named():
    loader = batches_of()
    batches = list(loader)
    with pytest.raises(NoEffectError, match="while it is attached"):
        train(Gan(), 2 * batches, loader)


def test_nothing_is_said_where_loaders_end_no_epoch():
    gan = Gan(every=2)
    with attach(gan.critic, gan.topk, loader=batches_of()) as attached:
        for _ in range(9):
            gan.train(DATA[:8])
        assert attached.epochs_counted == "by --every 2"
    assert gan.topk.epoch == 4


def test_an_exception_of_the_loop_is_not_replaced():
    def broken():
        yield DATA[:8]
        raise KeyError

    with pytest.raises(KeyError):
        train(Gan(), broken(), batches_of())


def test_an_object_that_holds_none():
    class Holds:
        data = DATA

    with pytest.raises(ConfigError, match="found a Holds as the loader, .* among its attributes"):
        attach(Gan().critic, Gan().topk, loader=Holds())


def test_two_attachments_count_the_same_loader_once_each():
    """Each heard of the other one's deliveries, and ended its epochs twice as often."""
    gans, loader = (
        [Gan(), Gan()],
        batches_of(sampler=RandomSampler(DATA, True, 96)),
    )
    with (
        attach(gans[0].critic, gans[0].topk, loader=loader),
        attach(gans[1].critic, gans[1].topk, loader=loader),
    ):
        for x in loader:
            for gan in gans:
                gan.train(x)
    assert [gan.epochs for gan in gans] == 2 * [passes(4, 4, 4)]


def test_end_epoch_by_hand():
    gan = Gan()
    with attach(gan.critic, gan.topk) as attached:
        gan.train(DATA[:8])
        assert attached.epochs_counted == "not at all"
        gan.topk.end_epoch()
        assert attached.epochs_counted == "by end_epoch()"
