"""Whose step a critic call belongs to: optimizers, marks by hand, closures."""

from __future__ import annotations

import contextlib
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, WIDTH, noise, reals
from stepping import SGD, Setup
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.errors import GeneratorStepUnknown

pytestmark = pytest.mark.usefixtures("seeded")

# --- which steps count --------------------------------------------------------------------------


def test_the_critics_optimizer_sets_aside(gan):
    for _ in range(3):
        gan.critic_step()
        gan.critic_step()
        gan.generator_step()
    assert gan.topk.steps == 3
    assert gan.topk.report().rows == 3 * BATCH
    assert gan.topk.report().dropped == 3 * (BATCH - 4)
    assert gan.topk.direction == "high"


def test_critic_steps_do_not_vote(gan):
    for _ in range(20):
        gan.critic_step()
    assert gan.topk.direction == "undecided"
    gan.generator_step()
    gan.critic_step()
    assert gan.topk.direction == "high"


def test_both_losses_backwarded_before_either_step(gan):
    """The generator's loss first, so that the critic's optimizer steps first, as in ACGAN loops."""
    for _ in range(3):
        gan.generator_backward()
        gan.opt_D.step()
        gan.opt_G.step()
    assert gan.topk.steps == 3
    assert gan.topk.report().rows == 3 * BATCH


def test_but_not_if_another_backward_came_between(gan):
    gan.generator_backward()
    gan.opt_D.step()  # set aside
    gan.generator_backward()  # gone
    gan.opt_G.step()
    assert gan.topk.report().rows == BATCH


def test_an_auxiliary_optimizer_changes_nothing(gan):
    other = nn.Linear(2, 2)
    auxiliary = SGD(other.parameters(), 0.1)
    for _ in range(3):
        gan.critic_backward()
        auxiliary.step()
        gan.opt_D.step()
        gan.generator_backward()
        other(torch.ones(2)).sum().backward()
        auxiliary.step()
        gan.opt_G.step()
        auxiliary.step()
    assert gan.topk.steps == 3
    assert gan.topk.report().rows == 3 * BATCH


def test_a_forward_without_a_backward_does_not_count(gan):
    for _ in range(3):
        gan.D(gan.G(noise()))
        gan.opt_G.step()
    with torch.no_grad():
        gan.D(gan.G(noise()))
    gan.opt_G.step()
    gan.D(reals())
    gan.opt_G.step()
    assert gan.topk.steps == 0
    gan.D(gan.G(noise()))
    gan.generator_step()
    assert (gan.topk.steps, gan.topk.report().rows) == (1, BATCH)


def test_a_step_without_a_backward_before_it_does_not_count_again(gan):
    gan.generator_step()
    gan.opt_G.step()
    gan.opt_D.step()
    gan.opt_G.step()
    assert gan.topk.steps == 1


def test_accumulation_is_one_step(gan):
    for _ in range(3):
        gan.generator_backward()
    gan.opt_G.step()
    assert (gan.topk.steps, gan.topk.report().rows) == (1, 3 * BATCH)


def test_several_generator_optimizers_are_one_step(gan):
    """One per part of the generator; the second one finds nothing left."""
    first, second = SGD(gan.G[0].parameters(), 0.1), SGD(gan.G[3].parameters(), 0.1)
    for _ in range(3):
        gan.generator_backward()
        first.step()
        second.step()
    assert gan.topk.steps == 3


def test_one_optimizer_for_both_nets_is_an_error_that_says_what_to_do(gan):
    both = torch.optim.Adam([*gan.G.parameters(), *gan.D.parameters()])
    gan.generator_backward()
    with pytest.raises(GeneratorStepUnknown) as caught:
        both.step()
    for word in ["one Adam", "topk.generator_step()", "topk.step()", "topk.paused()"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("beside", ["no other", "another loop's"])
@pytest.mark.parametrize("critics", ["the same one", "its own"])
def test_one_optimizer_for_both_nets_where_the_critic_is_frozen(gan, critics, beside):
    """That of a chain of both, as `Sequential(G, D).parameters()`, or one that steps all."""
    other = SGD(nn.Linear(1, 1).parameters(), 0.1) if beside == "another loop's" else None
    both = SGD([*gan.G.parameters(), *gan.D.parameters()], 0.01)
    own = both if critics == "the same one" else SGD(gan.D.parameters(), 0.01)
    for _ in range(3):
        own.zero_grad()
        gan.G.requires_grad_(critics == "its own")
        gan.critic_backward()
        gan.G.requires_grad_(True)
        own.step()
        both.zero_grad()
        gan.D.requires_grad_(False)
        gan.generator_backward()
        gan.D.requires_grad_(True)
        both.step()
        if other is not None:
            other.step()
    assert gan.topk.steps == 3
    assert gan.topk.report().dropped == 3 * (BATCH - 4)


@pytest.mark.parametrize("how", ["with", "with, step inside", "step()", "step() after"])
def test_one_optimizer_for_both_nets_marked_by_hand(gan, how):
    both = SGD([*gan.G.parameters(), *gan.D.parameters()], 0.01)
    for _ in range(3):
        with gan.topk.paused():
            gan.critic_backward()
        both.step()
        if how.startswith("with"):
            with gan.topk.generator_step():
                gan.generator_backward()
                if how == "with, step inside":
                    both.step()
            if how == "with":
                both.step()
        elif how == "step()":
            gan.generator_backward()
            gan.topk.step()
            both.step()
        else:
            # the first optimizer step of all cannot know that a mark will follow
            with suppress(GeneratorStepUnknown):
                gan.generator_backward()
                both.step()
            gan.topk.step()
    assert gan.topk.steps == 3
    assert gan.topk.report().rows == 3 * BATCH


def test_marked_steps_ignore_unmarked_calls(gan):
    """Once the user marks, un-detached fakes of critic steps need no pause."""
    both = SGD([*gan.G.parameters(), *gan.D.parameters()], 0.01)
    for _ in range(3):
        with gan.topk.generator_step():
            gan.generator_backward()
        both.step()
        gan.critic_backward()
        both.step()
    assert (gan.topk.steps, gan.topk.report().rows) == (3, 3 * BATCH)
    assert gan.topk.direction == "high"


@pytest.mark.parametrize("order", ["mark, step", "step, mark"])
def test_marking_by_hand_with_two_optimizers_counts_once(gan, order):
    for _ in range(3):
        gan.critic_step()
        gan.generator_backward()
        if order == "mark, step":
            gan.topk.step()
            gan.opt_G.step()
        else:
            gan.opt_G.step()
            gan.topk.step()
    assert (gan.topk.steps, gan.topk.report().rows) == (3, 3 * BATCH)


@pytest.mark.parametrize("order", ["mark, step", "step, mark"])
def test_marking_line_a_by_hand_counts_once(order):
    setup = Setup()
    for _ in range(3):
        F.softplus(-setup.topk(setup.D(setup.G(noise())))).mean().backward()
        if order == "mark, step":
            setup.topk.step()
            setup.opt_G.step()
        else:
            setup.opt_G.step()
            setup.topk.step()
    assert setup.topk.steps == 3


def test_no_optimizer_of_torch_optim(gan):
    """Updates by hand: nothing tells the steps, so after a while an error does."""
    for _ in range(1000):
        gan.generator_backward()
    with pytest.raises(GeneratorStepUnknown, match="no optimizer of torch.optim"):
        gan.generator_backward()


def test_line_a_counts_the_optimizer_steps_after_a_backward():
    setup = Setup()
    for _ in range(3):
        setup.critic_step()
        for _ in range(2):
            F.softplus(-setup.topk(setup.D(setup.G(noise())))).mean().backward()
        setup.opt_G.step()
    assert (setup.topk.steps, setup.topk.report().rows) == (3, 6 * BATCH)


def test_generator_argument_decides_what_is_a_generator_call():
    """An encoder in front of the critic is no generator if the user names one."""
    setup = Setup()
    E = nn.Linear(WIDTH, WIDTH).double()
    opt_E = SGD(E.parameters(), 0.1)
    with attach(setup.D, setup.topk, generator=setup.G):
        F.softplus(-setup.D(E(reals()))).mean().backward()
        opt_E.step()
        assert setup.topk.steps == 0
        setup.generator_step()
    assert (setup.topk.steps, setup.topk.report().rows) == (1, BATCH)


# --- closures, exceptions, nested optimizers ----------------------------------------------------


def test_closures(gan):
    """The backward runs inside step(); LBFGS even runs it several times."""

    def closure():
        gan.opt_G.zero_grad()
        loss = F.softplus(-gan.D(gan.G(noise()))).mean()
        loss.backward()
        return loss

    def critic_closure():
        gan.opt_D.zero_grad()
        loss = F.softplus(gan.D(gan.G(noise()))).mean()
        loss.backward()
        return loss

    for _ in range(3):
        gan.opt_D.step(critic_closure)
        gan.opt_G.step(closure)
    assert (gan.topk.steps, gan.topk.report().rows) == (3, 3 * BATCH)
    torch.optim.LBFGS(gan.G.parameters(), max_iter=3).step(closure)
    assert gan.topk.steps == 4


def test_line_a_in_a_closure():
    """The hooks are registered by the first call, here in the middle of a step."""
    setup = Setup()

    def closure():
        setup.opt_G.zero_grad()
        loss = F.softplus(-setup.topk(setup.D(setup.G(noise())))).mean()
        loss.backward()
        return loss

    for _ in range(3):
        setup.opt_G.step(closure)
    assert setup.topk.steps == 3


def test_an_exception_in_a_closure_is_forgotten(gan):
    def closure():
        raise KeyError("the loop's own")

    for _ in range(2):
        with pytest.raises(KeyError):
            gan.opt_G.step(closure)
        with pytest.raises(KeyError):
            gan.opt_D.step(closure)
    for _ in range(3):
        gan.critic_step()
        gan.generator_step()
    assert (gan.topk.steps, gan.topk.report().rows) == (3, 3 * BATCH)


class Lookahead(torch.optim.Optimizer):
    """A wrapper as they are found in the wild: an Optimizer that calls another one's step."""

    def __init__(self, inner, twice=False):
        self.inner, self.twice = inner, twice
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        self.inner.step(closure)
        if self.twice:
            self.inner.step()


@pytest.mark.parametrize("twice", [False, True])
def test_a_nested_optimizer_counts_once(gan, twice):
    opt_G, opt_D = Lookahead(gan.opt_G, twice), Lookahead(gan.opt_D, twice)
    for _ in range(3):
        gan.critic_backward()
        opt_D.step()
        gan.generator_backward()
        opt_G.step()
    assert (gan.topk.steps, gan.topk.report().rows) == (3, 3 * BATCH)
    assert gan.topk.ledger.optimizer_steps == 6


def test_every_n_generator_steps():
    setup = Setup(TopK(gamma=0.9, nu=0.1, every=3))
    with attach(setup.D, setup.topk):
        epochs = []
        for _ in range(7):
            setup.critic_step()
            setup.generator_step()
            epochs.append(setup.topk.epoch)
    assert epochs == [0, 0, 1, 1, 1, 2, 2]


def test_one_optimizer_for_both_nets_beside_another_loops_optimizer():
    """What else is alive in the process says nothing about this loop."""
    torch.manual_seed(0)
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)
    both = torch.optim.SGD([*G.parameters(), *D.parameters()], 0.1)
    with attach(D, TopK()):
        other.step()
        D(G(torch.randn(4, 2))).mean().backward()
        with pytest.raises(GeneratorStepUnknown, match="both the generator and the critic"):
            both.step()


def test_an_exception_inside_a_marked_step_leaves_nothing_to_count():
    torch.manual_seed(0)
    G, D, topk = nn.Linear(2, 2), nn.Linear(2, 1), TopK()
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    with attach(D, topk):
        with contextlib.suppress(ZeroDivisionError), topk.generator_step():
            D(G(torch.randn(4, 2))).mean().backward()
            raise ZeroDivisionError
        optimizer.step()
        assert topk.steps == 0


@pytest.mark.parametrize("how", ["detached", "un-detached", "paused"])
def test_a_score_gate_that_would_mask_critic_steps_is_an_error_before_damage(how):
    """gate="score" takes each call for the generator's; k = B in the first epoch."""
    setup = Setup(TopK(gamma=0.5, nu=0.5, gate="score"))
    with attach(setup.D, setup.topk):
        for _ in range(2):
            setup.opt_D.zero_grad()
            with setup.topk.paused() if how == "paused" else contextlib.nullcontext():
                fake = setup.G(noise())
                fake = fake.detach() if how == "detached" else fake
                (F.softplus(setup.D(fake)) + F.softplus(-setup.D(reals()))).mean().backward()
            setup.opt_D.step()
            setup.opt_G.zero_grad()
            setup.generator_step()
        if how == "un-detached":
            with pytest.raises(GeneratorStepUnknown, match="the gate is 'score', and the critic's"):
                setup.topk.end_epoch()
        else:
            setup.topk.end_epoch()
