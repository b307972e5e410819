"""What a module or an optimizer owns is listed anew exactly where something in it changed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from topk_plugin.core.graph import LiveIds
from topk_plugin.core.parameters import ModuleParameters, owned_by

pytestmark = pytest.mark.usefixtures("seeded")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Identity()))


def add(net: nn.Sequential) -> None:
    net.append(nn.Linear(3, 1))


def add_inside(net: nn.Sequential) -> None:
    net[1].append(nn.Linear(3, 1))


def replace(net: nn.Sequential) -> None:
    net[0] = nn.Linear(2, 3)


def replace_what_has_none(net: nn.Sequential) -> None:
    net[1][1] = nn.PReLU()


def replace_after_the_old_one_is_gone(net: nn.Sequential) -> None:
    net[1][1] = None
    gc.collect()
    net[1][1] = nn.PReLU()


def remove(net: nn.Sequential) -> None:
    del net[1]


def new_weight(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.zeros(3, 2))


def no_bias(net: nn.Sequential) -> None:
    net[0].bias = None


def behind_its_back(net: nn.Sequential) -> None:
    """As ``to_empty()`` and FSDP do."""
    net[0]._parameters["weight"] = nn.Parameter(torch.zeros(3, 2))


CHANGES = [
    add, add_inside, replace, replace_what_has_none, replace_after_the_old_one_is_gone, remove,
    new_weight, no_bias, behind_its_back,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_changes(change):
    net = network()
    parameters = ModuleParameters(net)
    before = parameters.owned
    assert before.ids == set(map(id, net.parameters()))
    assert parameters.owned is before, "it is listed once"
    change(net)
    after = parameters.owned
    assert after is not before
    assert after.ids == set(map(id, net.parameters()))
    assert parameters.owned is after


def test_frozen_is_asked_each_time():
    net = network()
    parameters = ModuleParameters(net)
    assert not parameters.owned.frozen
    net.requires_grad_(False)
    assert parameters.owned.frozen
    net[1][0].weight.requires_grad_(True)
    assert not parameters.owned.frozen


def test_a_class_with_a_list_of_its_own_is_asked_each_time():
    class Picky(nn.Linear):
        picks = True

        def named_parameters(self, *args, **kwargs):
            return (item for item in super().named_parameters() if self.picks or item[0] == "bias")

    net = Picky(2, 3)
    parameters = ModuleParameters(net)
    assert len(parameters.owned.ids) == 2
    net.picks = False
    assert parameters.owned.ids == {id(net.bias)}


def test_a_module_is_not_kept_alive():
    net = network()
    parameters = ModuleParameters(net)
    alive = [weakref.ref(net), *map(weakref.ref, net.parameters())]
    assert len(parameters.owned.ids) == 4
    del net
    gc.collect()
    assert [ref() for ref in alive] == [None] * 5
    assert parameters.owned is None


def test_an_optimizer_that_changes():
    net, new = network(), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = owned_by(optimizer)
    assert before.ids == set(map(id, net.parameters()))
    assert owned_by(optimizer) is before
    optimizer.add_param_group({"params": [new]})
    assert owned_by(optimizer).ids == {*map(id, net.parameters()), id(new)}
    optimizer.param_groups[0]["params"] = [net[0].weight]
    assert owned_by(optimizer).ids == {id(net[0].weight), id(new)}
    optimizer.param_groups[0]["params"][0] = net[0].bias  # the same list
    assert owned_by(optimizer).ids == {id(net[0].bias), id(new)}


def test_ids_of_parameters_that_are_gone_are_given_up_and_taken_again():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    ids = LiveIds()
    owned = owned_by(optimizer)
    ids.take_owned(owned)
    ids.take_owned(owned)
    assert ids == owned.ids
    optimizer.param_groups[0]["params"].clear()
    gc.collect()
    assert ids == set()
    assert not owned.alive
    for _ in range(20):  # one of them may get the id of the old one
        optimizer.param_groups[0]["params"][:] = [nn.Parameter(torch.zeros(1))]
        ids.take_owned(owned_by(optimizer))
        assert ids == set(map(id, optimizer.param_groups[0]["params"]))
