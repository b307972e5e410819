"""Places of a loop that throw the critic's gradient away: learned there, never anywhere else."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from learning import Loop, spared
from losses import WIDTH, Critic, assert_same, noise, reals
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torches import compiles, scalers

from topk_plugin import attach
from topk_plugin.loop import places
from topk_plugin.loop.place import LEARNED, unsettled
from topk_plugin.loop.uses import uses

pytestmark = pytest.mark.usefixtures("nothing_compiled")


class GeneratorFirst(Loop):
    def step(self, n):
        self.generator_step()
        self.critic_step()


class Modules(Loop):
    """Gradients are zeroed by the networks, and before the generator's step."""

    def step(self, n):
        self.G.zero_grad()
        self.loss_G().backward()
        self.D.zero_grad()
        self.opt_G.step()
        self.loss_D().backward()
        self.opt_D.step()


class InPlace(Loop):
    def critic_step(self):
        self.opt_D.zero_grad(set_to_none=False)
        self.loss_D().backward()
        self.opt_D.step()


class ToNoneByHand(Loop):
    def critic_step(self):
        for p in self.D.parameters():
            p.grad = None
        self.loss_D().backward()
        self.opt_D.step()


class DeletedByHand(Loop):
    def critic_step(self):
        for p in self.D.parameters():
            del p.grad
        self.loss_D().backward()
        self.opt_D.step()


class ByAutograd(Loop):
    """It is asked for the critic's own gradient, while the graph of a generator's step lives."""

    def critic_step(self):
        parameters = list(self.D.parameters())
        found = torch.autograd.grad(self.loss_D(), parameters)
        for p, g in zip(parameters, found, strict=True):
            p.grad = g
        self.opt_D.step()

    def generator_step(self):
        self.opt_G.zero_grad()
        self.loss = self.loss_G()
        self.loss.backward()
        self.opt_G.step()


class Undetached(Loop):
    def critic_step(self):
        self.opt_D.zero_grad()
        self.loss_D(self.G(noise())).backward()
        self.opt_D.step()


class Accumulated(Loop):
    """Three batches for a step of the generator, two for one of the critic."""

    def step(self, n):
        self.opt_D.zero_grad()
        for _ in range(2):
            (self.loss_D() / 2).backward()
        self.opt_D.step()
        self.opt_G.zero_grad()
        for _ in range(3):
            (self.loss_G() / 3).backward()
        self.opt_G.step()


class Rarely(Loop):
    """A critic that is trained in every third step."""

    def step(self, n):
        self.generator_step()
        if n % 3 == 2:
            self.critic_step()


class ByHand(Loop):
    """The critic's optimizer is nobody's class; its gradients are thrown away before."""

    def critic_step(self):
        self.D.zero_grad()
        self.loss_D().backward()
        with torch.no_grad():
            for p in self.D.parameters():
                p -= 0.01 * p.grad


class Clipped(Loop):
    """Each network by itself."""

    def step(self, n):
        self.opt_D.zero_grad()
        self.loss_D().backward()
        nn.utils.clip_grad_norm_(self.D.parameters(), 0.1)
        self.opt_D.step()
        self.opt_G.zero_grad()
        self.loss_G().backward()
        nn.utils.clip_grad_norm_(self.G.parameters(), 0.1)
        self.opt_G.step()


OVERFLOWS = [2, 9, LEARNED + 6]


class Scaled(Loop):
    """Some steps of either optimizer overflow."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.scaler = torch.amp.GradScaler("cpu")

    def step(self, n):
        for optimizer, loss in ((self.opt_D, self.loss_D), (self.opt_G, self.loss_G)):
            optimizer.zero_grad()
            big = float("inf") if n in OVERFLOWS and optimizer is self.opt_G or n == 7 else 1.0
            (self.scaler.scale(loss()) * big).backward()
            self.scaler.step(optimizer)
        self.scaler.update()


class TwoPlaces(Loop):
    def loss_G(self):
        one = F.softplus(-self.D(self.G(noise()))).mean()
        return one + F.softplus(-self.D(self.G(noise()))).mean()


class OnePlaceTwice(Loop):
    def loss_G(self):
        return sum(F.softplus(-self.D(self.G(noise()))).mean() for _ in range(2))


class Paired(Loop):
    """The generator's loss reads the scores of reals, too."""

    def loss_G(self):
        return F.softplus(self.D(reals()).mean() - self.D(self.G(noise()))).mean()


class FrozenLater(Loop):
    def step(self, n):
        if n == LEARNED + 5:
            self.D.body[0].requires_grad_(False)
        super().step(n)


class Replaced(Loop):
    """One layer of the critic, and later its optimizer."""

    def step(self, n):
        if n == LEARNED + 5:
            self.D.score[0] = nn.Linear(16, 1).double()
        if n in (LEARNED + 5, LEARNED + 8):
            self.opt_D = torch.optim.Adam(self.D.parameters(), 1e-2)
        super().step(n)


LEARNS = [
    Loop, GeneratorFirst, Modules, InPlace, ToNoneByHand, DeletedByHand, ByAutograd, Undetached,
    Accumulated, ByHand, Clipped, TwoPlaces, OnePlaceTwice, Paired, FrozenLater, Replaced,
    pytest.param(Scaled, marks=scalers),
]  # fmt: skip


@pytest.mark.parametrize("kind", LEARNS)
def test_a_place_is_learned_and_not_a_bit_changes(kind):
    steps = LEARNED + 15
    # steps of the generator that are skipped count for nothing
    assert spared(kind, steps) == 15 - (len(OVERFLOWS) + 1 if kind is Scaled else 0)


def test_what_lies_in_the_critic_counts_when_it_is_thrown_away():
    assert spared(Rarely, 40) == 40 - (LEARNED // 3 + 1) * 3


class Falls(Loop):
    """Nothing is dropped in the first epoch of thirty steps."""

    logs = False  # norms of gradients, when it ends

    def __init__(self, **settings):
        super().__init__(**settings)
        self.topk.begin_at(0, 0)

    def step(self, n):
        super().step(n)
        if n == 29:
            self.topk.end_epoch()
            self.norms = [p.grad.norm() for p in self.D.parameters() if self.logs]


class Logs(Falls):
    logs = True


def test_it_is_learned_while_nothing_is_dropped_and_used_once_rows_are_seen_to_act():
    assert spared(Falls, 40) == 10 - 2  # the first of them shows it, which the next one knows


def test_who_reads_it_once_in_the_first_epoch_is_heard():
    assert spared(Logs, 60) == 0


# --- never learned --------------------------------------------------------------------------------


class BothBackwardFirst(Loop):
    def step(self, n):
        self.opt_D.zero_grad()
        self.opt_G.zero_grad()
        self.loss_D().backward()
        self.loss_G().backward()
        self.opt_D.step()
        self.opt_G.step()


class OneLine(Loop):
    """It serves both phases, the critic's with fakes that are not detached."""

    def step(self, n):
        for optimizer, sign in ((self.opt_D, 1), (self.opt_G, -1)):
            optimizer.zero_grad()
            fakes = self.D(self.G(noise()))
            loss = F.softplus(sign * fakes).mean()
            if sign > 0:
                loss = loss + F.softplus(-self.D(reals())).mean()
            loss.backward()
            optimizer.step()


class NeverZeroed(Loop):
    """The generator's step, too, is a step of the critic."""

    def critic_step(self):
        self.loss_D().backward()
        self.opt_D.step()
        self.opt_D.zero_grad()


class ZeroedInPlaceByHand(Loop):
    """Whoever reads it may do anything with it."""

    def critic_step(self):
        for p in self.D.parameters():
            if p.grad is not None:
                p.grad.zero_()
        self.loss_D().backward()
        self.opt_D.step()


class ClippedTogether(Loop):
    def generator_step(self):
        self.opt_G.zero_grad()
        self.loss_G().backward()
        nn.utils.clip_grad_norm_([*self.G.parameters(), *self.D.parameters()], 0.1)
        self.opt_G.step()


class Logged(Loop):
    def generator_step(self):
        super().generator_step()
        self.norm = sum(p.grad.square().sum() for p in self.D.parameters())


class SteppedByHand(Loop):
    """The critic's gradient of the generator's step takes part."""

    def critic_step(self):
        self.loss_D().backward()
        with torch.no_grad():
            for p in self.D.parameters():
                p -= 0.01 * p.grad
                p.grad = None


class TakenFromAutograd(Loop):
    """And written where the optimizers look for it."""

    def generator_step(self):
        mine, others = list(self.G.parameters()), list(self.D.parameters())
        found = torch.autograd.grad(self.loss_G(), mine + others)
        for p, g in zip(mine, found, strict=False):
            p.grad = g
        self.opt_G.step()
        with torch.no_grad():
            for p, g in zip(others, found[len(mine) :], strict=True):
                p -= 0.01 * g


class Penalized(Loop):
    """The critic's penalty is differentiated in the generator's step, and used later."""

    def step(self, n):
        self.opt_G.zero_grad()
        real = reals().requires_grad_()
        (slope,) = torch.autograd.grad(self.D(real).sum(), real, create_graph=True)
        (self.loss_G() + slope.square().sum(1).mean()).backward()
        self.opt_G.step()
        self.loss_D().backward()
        self.opt_D.step()
        self.opt_D.zero_grad()


class Hooked(Loop):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.D.score[0].weight.register_hook(lambda gradient: None)


class Shared(Loop):
    """The generator's optimizer trains a layer of the critic, too."""

    def __init__(self, **settings):
        super().__init__(**settings)
        layer = self.D.score[0].parameters()
        self.opt_G.add_param_group({"params": list(layer)})
        self.opt_D = torch.optim.Adam(self.D.body.parameters(), 1e-2)

    def step(self, n):
        self.D.zero_grad()
        self.critic_step()
        self.generator_step()


class Conditional(Critic):
    """Takes an embedding that the critic learns from outside."""

    def forward(self, x, y):
        return super().forward(x + y)


class Embedded(Loop):
    def __init__(self, **settings):
        super().__init__(lambda: Conditional("batch"), **settings)
        self.embedding = nn.Parameter(torch.zeros(8, WIDTH, dtype=torch.float64))
        self.opt_E = torch.optim.SGD([self.embedding], 0.1)

    def loss_D(self, fake=None):
        y, fake = self.embedding.detach(), self.G(noise()).detach()
        return F.softplus(-self.D(reals(), y)).mean() + F.softplus(self.D(fake, y)).mean()

    def loss_G(self):
        self.opt_E.zero_grad()
        return F.softplus(-self.D(self.G(noise()), self.embedding)).mean()

    def generator_step(self):
        super().generator_step()
        self.opt_E.step()

    @property
    def tensors(self):
        return [*super().tensors, self.embedding.detach().clone()]


class Hides(Critic):
    """Uses a parameter that is not registered in it."""

    def __init__(self):
        super().__init__("batch")
        self.hidden = [nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))]

    def forward(self, x):
        return super().forward(x * self.hidden[0])


class Hidden(Embedded):
    def __init__(self, **settings):
        Loop.__init__(self, Hides, **settings)
        (self.embedding,) = self.D.hidden
        self.opt_E = torch.optim.SGD([self.embedding], 0.1)

    loss_D = Loop.loss_D

    def loss_G(self):
        self.opt_E.zero_grad()
        return super(Embedded, self).loss_G()


class Checkpointed(Critic):
    """Its first layers run again in each backward, and BatchNorm's statistics move."""

    def forward(self, x):
        return self.score(checkpoint(self.body, x, use_reentrant=False))


class CheckpointedLoop(Loop):
    def __init__(self, **settings):
        super().__init__(lambda: Checkpointed("batch"), **settings)


NEVER = [
    BothBackwardFirst, OneLine, NeverZeroed, ZeroedInPlaceByHand, ClippedTogether, Logged,
    SteppedByHand, TakenFromAutograd, Penalized, Hooked, Shared, Embedded, Hidden, CheckpointedLoop,
]  # fmt: skip


@pytest.mark.parametrize("kind", NEVER)
def test_a_place_is_never_learned(kind):
    assert spared(kind, LEARNED + 15) == 0


@pytest.mark.parametrize(
    ("settings", "norm"),
    [
        ({"gate": "shielded"}, "batch"),
        ({"gate": "score"}, "batch"),
        ({}, "spectral"),
        ({}, "group"),
    ],
)
def test_other_gates_and_critics_whose_rows_are_apart_need_none(settings, norm):
    loop = Loop(lambda: Critic(norm), **settings)
    with attach(loop.D, loop.topk):
        loop.run(LEARNED + 10)
        assert "grad" not in vars(nn.Parameter)
    assert loop.topk.report().spared == 0


def test_marked_steps_say_what_is_what_themselves():
    class Marked(Loop):
        def generator_step(self):
            with self.topk.generator_step():
                super().generator_step()

    assert spared(Marked, LEARNED + 10) == 0


def test_not_where_ranks_exchange_gradients(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        assert spared(Loop, LEARNED + 10) == 0
    finally:
        torch.distributed.destroy_process_group()


def test_not_in_data_parallel():
    loop = Loop()
    parallel = nn.DataParallel(loop.D)
    with attach(parallel, loop.topk):
        loop.run(LEARNED + 10)
    assert loop.topk.report().spared == 0


def test_not_where_anything_is_compiled(monkeypatch):
    """It would be compiled anew for frozen parameters."""
    monkeypatch.setattr(places, "something_is_compiled", lambda: True)
    assert spared(Loop, LEARNED + 10) == 0


@compiles
def test_a_compiled_critic_is_not_frozen(monkeypatch):
    monkeypatch.undo()
    loop = Loop()
    loop.D.compile(backend="eager")
    with attach(loop.D, loop.topk):
        loop.run(LEARNED + 5)
    assert loop.topk.report().spared == 0


@compiles
def test_an_optimizer_may_be_compiled_while_gradients_are_watched():
    def run(**settings):
        loop = Loop(**settings)
        with attach(loop.D, loop.topk):
            loop.run(2)
            assert ("grad" in vars(nn.Parameter)) == loop.topk.config.spare
            loop.opt_D.step = torch.compile(loop.opt_D.step, backend="eager")
            loop.run(3)
        return loop.tensors

    assert_same(run(), run(spare=False))


def test_stacks_that_do_not_recur_are_not_remembered_without_end(monkeypatch):
    monkeypatch.setattr(places, "REMEMBERED", 3)

    class Varies(Loop):
        def generator_step(self, n=0):
            if n:
                return self.generator_step(n - 1)
            return super().generator_step()

        def step(self, n):
            self.critic_step()
            self.generator_step(n)

    loop = Varies()
    with attach(loop.D, loop.topk) as attachment:
        loop.run(10)
        assert len(attachment._places._known) == 3


# --- what is restored -----------------------------------------------------------------------------


def test_a_learned_critic_is_thawed_after_each_call_and_after_an_error():
    class Fails(Critic):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            self.frozen = not any(p.requires_grad for p in self.body.parameters())
            if self.fails:
                raise KeyError
            return super().forward(x)

    loop = Loop(lambda: Fails("batch"))
    loop.D.score.requires_grad_(False)
    before = [p.requires_grad for p in loop.D.parameters()]
    with attach(loop.D, loop.topk):
        for n in range(LEARNED + 5):
            loop.D.fails = n == LEARNED + 4
            with pytest.raises(KeyError) if loop.D.fails else nullcontext():
                loop.generator_step()
            loop.critic_step() if not loop.D.fails else None
        assert loop.D.frozen
        assert [p.requires_grad for p in loop.D.parameters()] == before


def test_nothing_is_left_when_it_is_detached():
    loop = Loop()
    ledger = loop.topk.ledger
    with attach(loop.D, loop.topk):
        loop.run(3)
        assert isinstance(vars(nn.Parameter)["grad"], property)
        p = loop.D.score[0].weight
        assert torch.equal(p.grad, torch.Tensor.grad.__get__(p))
        del p.grad
        assert p.grad is None
    assert "grad" not in vars(nn.Parameter)
    assert not unsettled
    assert uses.zeroed not in ledger.after_zeroing


def test_a_critic_that_is_built_anew_is_learned_anew():
    loop = Loop()
    for _ in range(2):
        with attach(loop.D, loop.topk):
            loop.run(LEARNED + 5)
        loop.D = copy.deepcopy(loop.D)
        loop.opt_D = torch.optim.Adam(loop.D.parameters(), 1e-2)
    assert loop.topk.report().spared == 2 * 5


def test_the_critic_forms_no_gradient_in_a_spared_step():
    loop = Loop()
    with attach(loop.D, loop.topk):
        for n in range(LEARNED + 1):
            loop.critic_step()
            before = [torch.Tensor.grad.__get__(p).clone() for p in loop.D.parameters()]
            loop.generator_step()
            after = [torch.Tensor.grad.__get__(p) for p in loop.D.parameters()]
            same = all(map(torch.equal, before, after))
            assert same == (n == LEARNED)
