"""A place was learned, and then the loop uses the critic's gradient after all."""

from __future__ import annotations

import gc
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from learning import Loop
from losses import Critic, noise, reals
from torch import nn
from torch.autograd import Variable, grad

from topk_plugin import TopK, attach
from topk_plugin.errors import GeneratorStepUnknown
from topk_plugin.loop.place import LEARNED, unsettled

pytestmark = pytest.mark.usefixtures("nothing_compiled")


class Changes(Loop):
    """After ``changes`` steps the critic's gradient of the generator's step is used."""

    changes = LEARNED + 5
    untouched = "GD"  # networks, when it stops

    def step(self, n):
        if n < self.changes:
            super().step(n)
        else:
            self.changed()

    def changed(self):
        """The critic's step throws nothing away."""
        self.loss_D().backward()
        self.opt_D.step()
        self.generator_step()


class LateChange(Changes):
    changes = 1000


class BothBackwardFirst(Changes):
    def step(self, n):
        both = n >= self.changes
        if not both:
            self.critic_step()
        self.opt_D.zero_grad()
        self.opt_G.zero_grad()
        if both:
            self.loss_D().backward()
        self.loss_G().backward()
        if both:
            self.opt_D.step()
        self.opt_G.step()


class ClippedTogether(Changes):
    untouched = "G"  # the critic's own step comes before

    def generator_step(self):
        self.opt_G.zero_grad()
        self.loss_G().backward()
        if self.together:
            nn.utils.clip_grad_norm_([*self.G.parameters(), *self.D.parameters()], 0.1)
        self.opt_G.step()

    def step(self, n):
        self.together = n >= self.changes
        self.critic_step()
        self.generator_step()


class Logged(ClippedTogether):
    untouched = ""

    def generator_step(self):
        Loop.generator_step(self)
        if self.together:
            self.norms = [p.grad.norm() for p in self.D.parameters() if p.grad is not None]


class OneLine(Loop):
    """It serves both phases, and the generator is trained alone at first."""

    changes, untouched = LEARNED + 5, "GD"

    def step(self, n):
        critics = n >= self.changes
        optimizer = self.opt_D if critics else self.opt_G
        self.opt_D.zero_grad()
        self.opt_G.zero_grad()
        loss = F.softplus(self.D(self.G(noise())) * (1 if critics else -1)).mean()
        loss.backward()
        optimizer.step()


class SteppedByHand(Changes):
    def changed(self):
        for p in self.D.parameters():
            p.data -= 0.01 * p.grad


class OtherOptimizer(Changes):
    """A third one owns the critic's last layer."""

    def changed(self):
        torch.optim.SGD(self.D.score.parameters(), 0.1).step()


class InClosure(Changes):
    def changed(self):
        def closure():
            loss = self.loss_D()
            loss.backward()
            return loss

        self.opt_D.step(closure)


class ByAutograd(Loop):
    """The critic's own gradient is that of the generator's call, and what it left was zeroed."""

    changes, untouched = LEARNED + 5, "GD"

    def step(self, n):
        if n < self.changes:
            self.critic_step()
        scores = self.D(self.G(noise()))
        if n >= self.changes:
            self.opt_D.zero_grad()
            self.form(F.softplus(scores).mean() + F.softplus(-self.D(reals())).mean())
            return self.opt_D.step()
        self.opt_G.zero_grad()
        F.softplus(-scores).mean().backward()
        return self.opt_G.step()

    def form(self, loss):
        parameters = list(self.D.parameters())
        for p, g in zip(parameters, grad(loss, parameters), strict=True):
            p.grad = g


class BackwardToInputs(ByAutograd):
    def form(self, loss):
        loss.backward(inputs=list(self.D.parameters()))


KINDS = [
    LateChange, BothBackwardFirst, ClippedTogether, Logged, OneLine, SteppedByHand, OtherOptimizer,
    InClosure, ByAutograd, BackwardToInputs,
]  # fmt: skip


def trained(loop: Loop, names: str) -> list[torch.Tensor]:
    """Parameters of networks, and the state of their optimizers."""
    found = [p for name in names for p in getattr(loop, name).parameters()]
    for name in names:
        for state in getattr(loop, f"opt_{name}").state.values():
            found += state.values()
    return [tensor.detach().clone() for tensor in found]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_an_error_before_damage(kind):
    loop = kind()
    changes, errors = loop.changes, []
    with attach(loop.D, loop.topk):
        for n in range(changes + LEARNED + 5):
            before = trained(loop, loop.untouched)
            try:
                loop.step(n)
            except GeneratorStepUnknown as error:
                errors.append((n, str(error), loop.topk.report().spared))
                after = trained(loop, loop.untouched)
                assert len(after) == len(before)
                assert all(map(torch.equal, after, before))
                # then it goes on as it was
                loop.changes = 10**6
                loop.opt_D.zero_grad()
    ((at, said, spared),) = errors
    assert at == changes
    assert re.search(r"is used: .* from \w+\.py:\d+, .*--no-spare, TopK\(spare=False\)", said)
    assert spared >= changes - LEARNED
    assert loop.topk.report().spared == spared  # nothing is, any more


def test_other_optimizers_and_readers_of_other_networks_are_no_use_of_it():
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)

    class Beside(Loop):
        def generator_step(self):
            super().generator_step()
            other(torch.ones(1, 2)).sum().backward()
            nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    loop = Beside()
    with attach(loop.D, loop.topk):
        loop.run(LEARNED + 5)
    assert loop.topk.report().spared == 5


def test_a_critic_that_is_gone_accuses_nobody():
    """Another one's parameters may get the ids of its own."""
    loop = Loop()
    with attach(loop.D, loop.topk) as attachment:
        loop.run(LEARNED + 2)
        (place,) = unsettled
        assert place.spared
        assert place.left
        loop.D, loop.opt_D = Critic("batch"), None
        gc.collect()  # old torch holds optimizers in cycles
        assert not place.left
        place._left = frozenset(map(id, loop.D.parameters()))
        loop.D(reals()).sum().backward()
        torch.optim.SGD(loop.D.parameters(), 0.1).step()
        assert loop.D.score[0].weight.grad is not None
        assert not place.is_distrusted
        assert attachment._places._watches


def test_layers_beside_one_that_was_replaced_since_are_still_looked_at():
    loop = Loop()
    with attach(loop.D, loop.topk):
        loop.run(LEARNED + 2)
        loop.D.score[0] = nn.Linear(16, 1).double()
        loop.opt_D = torch.optim.Adam(loop.D.parameters(), 1e-2)
        gc.collect()  # old torch holds optimizers in cycles
        before = trained(loop, "GD")
        with pytest.raises(GeneratorStepUnknown, match="Adam is about to step it"):
            loop.opt_D.step()
        assert all(map(torch.equal, trained(loop, "GD"), before))


def test_a_call_that_failed_left_nothing():
    class Fails(Critic):
        fails = False

        def forward(self, x):
            if self.fails:
                raise KeyError
            return super().forward(x)

    class Retries(Loop):
        def step(self, n):
            super().step(n)
            self.opt_D.zero_grad()
            self.D.fails = n > LEARNED + 2
            with pytest.raises(KeyError) if self.D.fails else nullcontext():
                self.loss_G()
            self.D.fails = False
            self.loss_D().backward()
            self.opt_D.step()

    loop = Retries(lambda: Fails("batch"))
    with attach(loop.D, loop.topk):
        loop.run(LEARNED + 5)
    assert loop.topk.report().spared == 5


def test_backwards_are_led_past_it_only_while_a_critic_is_spared():
    engine, loop, found = vars(Variable)["_execution_engine"], Loop(), []
    with attach(loop.D, loop.topk):
        for n in range(LEARNED + 1):
            loop.step(n)
            found.append(vars(Variable)["_execution_engine"] is engine)
    assert found == [True] * LEARNED + [False]
    assert vars(Variable)["_execution_engine"] is engine


# --- the record -----------------------------------------------------------------------------------


def failed() -> TopK:
    loop = Changes()
    with attach(loop.D, loop.topk), pytest.raises(GeneratorStepUnknown):
        loop.run(loop.changes + 1)
    return loop.topk


def test_a_place_that_failed_is_not_trusted_after_a_resume():
    def resumed(state):
        """From the same lines."""
        loop = Changes()
        if state is not None:
            loop.topk.load_state_dict(state)
        with attach(loop.D, loop.topk):
            try:
                loop.run(LEARNED + 6)
            except GeneratorStepUnknown:
                loop.changes = 0
        return loop

    states, found = [None], []
    for _ in range(3):
        loop = resumed(states[-1])
        states.append(loop.topk.state_dict())
        found.append(loop.topk.report().spared)
    assert found == [5, 0, 0]
    assert states[1]["distrusted"] == states[2]["distrusted"] == states[3]["distrusted"]
    assert all(isinstance(name, str) for name in states[1]["distrusted"])


def test_places_of_the_critics_own_steps_are_recorded_too():
    """Or a run that is resumed where these are rare would learn them."""

    class Undetached(Loop):
        def critic_step(self):
            self.opt_D.zero_grad()
            self.loss_D(self.G(noise())).backward()
            self.opt_D.step()

    loop = Undetached()
    with attach(loop.D, loop.topk):
        loop.run(3)
    assert len(loop.topk.state_dict()["distrusted"]) == 1
