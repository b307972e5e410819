"""Containers of other people's critics: opened, copied where something changes, named."""

import dataclasses
from collections import OrderedDict, UserDict, namedtuple
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from losses import BATCH, Critic, error, gradients, make_generator, make_topk, noise
from torch import nn
from torch.utils import _pytree as pytree

from topk_plugin import attach
from topk_plugin.core.ranking import named_leaves, part_of
from topk_plugin.core.trees import flatten, parts_of, tree_leaves


class EasyDict(dict):
    """As in many repositories: keys are attributes, too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__


class Both(OrderedDict):
    """A library's output class: what is set as an item is an attribute as well."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclasses.dataclass(frozen=True)
class Frozen:
    score: Any
    rest: Any = None
    unset: Any = dataclasses.field(init=False)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("score", "rest")
    score: Any
    rest: Any


class Listed(list):
    pass


Pair = namedtuple("Pair", "score rest")
MADE = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"score": a, "rest": b},
    "named tuple": Pair,
    "EasyDict": lambda a, b: EasyDict(score=a, rest=b),
    "output class": lambda a, b: Both(score=a, rest=b),
    "UserDict": lambda a, b: UserDict(score=a, rest=b),
    "dataclass": Frozen,
    "slots": Slotted,
    "namespace": lambda a, b: SimpleNamespace(score=a, rest=b),
    "subclass of list": lambda a, b: Listed([a, b]),
    "nested": lambda a, b: (EasyDict(score=Frozen(a), other=[b]),),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_tree_is_opened_and_made_again(made):
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    tree = made(a, {"x": b, "y": None})
    leaves, rebuild = flatten(tree)
    assert [leaf for leaf in leaves if leaf is not None] == [a, b]
    assert [leaf for _, leaf in named_leaves(tree)] == leaves == tree_leaves(tree)
    other = rebuild([c if leaf is a else leaf for leaf in leaves])
    assert type(other) is type(tree)
    assert [leaf for leaf in tree_leaves(other) if leaf is not None] == [c, b]
    assert [leaf for leaf in tree_leaves(tree) if leaf is not None] == [a, b]  # as it was
    for name, leaf in named_leaves(other):
        assert leaf is None or part_of(other, name) is leaf


@pytest.mark.parametrize("kind", ["EasyDict", "output class", "UserDict", "dataclass", "namespace"])
def test_what_nothing_is_replaced_in_is_the_same_object(kind):
    tree = MADE[kind](torch.ones(1), 2)
    leaves, rebuild = flatten((tree, 3))
    assert rebuild(leaves)[0] is tree


def test_attributes_are_replaced_with_the_items():
    leaves, rebuild = flatten(Both(score=1, rest=2))
    made = rebuild([5, *leaves[1:]])
    assert (made["score"], made.score, made.rest) == (5, 5, 2)


@pytest.mark.parametrize(
    "leaf", [torch.ones(2), nn.ModuleList([nn.Linear(1, 1)]), Frozen, 3, "text"]
)
def test_what_is_no_container(leaf):
    assert parts_of(leaf) is None
    assert tree_leaves(leaf) == [leaf] or tree_leaves(leaf)[0] is leaf


class Returns(nn.Module):
    """A critic whose arguments and output are of a class."""

    def __init__(self, made):
        super().__init__()
        self.critic, self.made = Critic(), made

    def forward(self, x):
        x = next(leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor))
        return self.made(self.critic(x), x * 2)


@pytest.mark.parametrize("mode", ["shielded", "marked"])
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_critic_that_is_given_and_returns_it_is_gated_as_by_hand(made, mode, seeded):
    G, D, topk = make_generator(), Returns(made), make_topk(3)
    z = noise()

    def scores(x):
        return next(leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor))

    best = scores(D(made(G(z), None))).flatten()
    best.sort(descending=True).values[:3].sigmoid().log().mean().neg().backward()
    expected = gradients(G)
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    G.zero_grad()
    with attach(D, topk), topk.generator_step() if mode == "marked" else nullcontext():
        scores(D(made(G(z), None))).sigmoid().log().mean().neg().backward()
        found = gradients(G)
        optimizer.step()
    assert error(found, expected) < 1e-12
    assert (topk.report().rows, topk.report().dropped) == (BATCH, BATCH - 3)


class Registered(UserDict):
    """A mapping that is no dict, which its library registered with torch."""


# public since torch 2.2
register = getattr(pytree, "register_pytree_node", None) or pytree._register_pytree_node
register(
    Registered,
    lambda d: (list(d.values()), list(d)),
    lambda parts, keys: Registered(zip(keys, parts, strict=True)),
)


def test_a_mapping_that_is_registered_has_its_keys_for_names():
    tree = Registered(score=torch.ones(1), rest=2)
    assert [name for name, _ in named_leaves(tree)] == ["score", "rest"]
    assert part_of(tree, "score") is tree["score"]
