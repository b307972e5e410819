"""Copies of a TopK, as where a module that holds one is copied, or sent to another process."""

import copy
import pickle

import pytest
import torch
from torch import nn

from topk_plugin import TopK, attach, hookimpl

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda topk: pickle.loads(pickle.dumps(topk)),
}


class Convincing:
    """A plugin."""

    @hookimpl
    def topk_select(self, scores):
        return scores > 1


def kept(topk: TopK) -> list[float]:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1], requires_grad=True)
    (-topk(scores)).mean().backward()
    return scores.grad.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_from_the_same_epoch_and_apart(way):
    topk = TopK(gamma=0.5, nu=0.25, direction="high")
    topk.end_epoch()
    other = WAYS[way](topk)
    assert (other.config, other.epoch, other.k(8)) == (topk.config, 1, 4)
    other.end_epoch()
    assert (other.k(8), topk.k(8)) == (2, 4)
    assert kept(topk) == [-0.5, 0, -0.5, 0]
    assert kept(other) == [0, 0, -1, 0]


@pytest.mark.parametrize("way", WAYS)
def test_it_has_the_plugins(way):
    topk = TopK(gamma=0.5, nu=0.25, direction="high", hooks=[Convincing()])
    topk.end_epoch()
    assert kept(WAYS[way](topk)) == [0, 0, -1, 0]


def test_in_a_module_that_is_copied_while_its_critic_is_attached():
    class Gan(nn.Module):
        def __init__(self):
            super().__init__()
            self.G, self.D = nn.Linear(2, 2), nn.Linear(2, 1)
            self.topk = TopK(gamma=0.5, nu=0.25, start_epoch=2)

    gan = Gan()
    with attach(gan.D, gan.topk):
        gan.topk.end_epoch()
        average = copy.deepcopy(gan)
        average.G(torch.randn(4, 2))
    assert (average.topk.epoch, average.topk.critics) == (3, 0)
    assert gan.topk.epoch == 3
