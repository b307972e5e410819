"""Autocast keeps copies of weights until its block ends; a critic that is spared passes them by."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from learning import Loop, spared
from losses import assert_same, noise, reals

from topk_plugin import attach
from topk_plugin.loop.place import LEARNED

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def autocast(**settings):
    return torch.autocast("cpu", torch.bfloat16, **settings)


class Float(Loop):
    """What has 64 bits is not cast."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.G.float()
        self.D.float()

    def loss_D(self):
        fake = self.G(noise().float()).detach()
        return F.softplus(-self.D(reals().float())).mean() + F.softplus(self.D(fake)).mean()

    def loss_G(self):
        return F.softplus(-self.D(self.G(noise().float()))).mean()


class Around(Float):
    """One block around both steps."""

    def step(self, n):
        with autocast():
            super().step(n)


class AroundDisabled(Float):
    """The critic's optimizer steps in an inner block, in which it is disabled."""

    def critic_step(self):
        self.opt_D.zero_grad()
        self.loss_D().backward()
        with autocast(enabled=False):
            self.opt_D.step()

    def step(self, n):
        with autocast():
            super().step(n)


class Later(Float):
    """The block comes once the place is learned, and the generator's step is the first in it."""

    def step(self, n):
        with autocast() if n >= LEARNED + 5 else nullcontext():
            self.generator_step()
            self.critic_step()


@pytest.mark.parametrize(("kind", "steps"), [(Around, 0), (AroundDisabled, 0), (Later, 5 + 1)])
def test_nothing_is_spared_once_the_critic_steps_inside_a_block(kind, steps):
    assert spared(kind, LEARNED + 15) == steps


class OfForwards(Float):
    def loss_D(self):
        with autocast():
            return super().loss_D()

    def loss_G(self):
        with autocast():
            return super().loss_G()


class GeneratorsAround(Float):
    def generator_step(self):
        with autocast():
            super().generator_step()


@pytest.mark.parametrize("kind", [OfForwards, GeneratorsAround])
def test_it_is_where_the_block_ends_before(kind):
    assert spared(kind, LEARNED + 15) == 15


def test_a_step_that_asks_for_it_sees_the_critic_as_one_frozen_by_hand_does():
    found = []
    for by_hand in (False, True):
        torch.manual_seed(1)
        loop = Float()
        with attach(loop.D, loop.topk), autocast():
            loop.critic_step()
            loop.D.requires_grad_(not by_hand)
            with loop.topk.generator_step(spare=not by_hand):
                loop.generator_step()
        found.append(loop.tensors)
    assert_same(*found)
