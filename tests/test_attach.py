"""Whose step a critic call belongs to, and that attach() leaves everything else as it was."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import subprocess
import sys
import types
import weakref
from contextlib import ExitStack, suppress

import pytest
import torch
import torch.nn.functional as F
from losses import (
    BATCH,
    LATENT,
    LOSSES,
    WIDTH,
    Critic,
    assert_same,
    best_rows,
    clear,
    error,
    gradients,
    literal,
    make_generator,
    make_topk,
)
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from topk_plugin import TopK, attach
from topk_plugin.errors import (
    ConfigError,
    DirectionUnknown,
    GeneratorStepUnknown,
    ResumeMismatch,
    ScoreShapeError,
)

SGD = torch.optim.SGD


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def noise(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, LATENT, dtype=torch.float64)


def reals(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, WIDTH, dtype=torch.float64)


class Setup:
    """A generator, a critic that is never frozen, an optimizer for each, and a TopK."""

    def __init__(self, topk: TopK | None = None, lr: float = 0.01) -> None:
        self.G, self.D = make_generator(), Critic()
        self.opt_G, self.opt_D = SGD(self.G.parameters(), lr), SGD(self.D.parameters(), lr)
        self.topk = topk or make_topk(4)

    def generator_backward(self) -> None:
        F.softplus(-self.D(self.G(noise()))).mean().backward()

    def critic_backward(self) -> None:
        """With fakes that are not detached, as in many loops."""
        (
            F.softplus(-self.D(reals())).mean() + F.softplus(self.D(self.G(noise()))).mean()
        ).backward()

    def generator_step(self) -> None:
        self.generator_backward()
        self.opt_G.step()

    def critic_step(self) -> None:
        self.critic_backward()
        self.opt_D.step()


@pytest.fixture
def gan():
    setup = Setup()
    with attach(setup.D, setup.topk):
        yield setup


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


# --- direction ----------------------------------------------------------------------------------


class Pair(nn.Module):
    """BiGAN's critic of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH + LATENT, 1).double()

    def forward(self, x, z):
        return self.net(torch.cat([x, z], 1))


@pytest.mark.parametrize("direction", ["auto", "high"])
def test_opposite_ballots_in_one_step(direction):
    """BiGAN: the loss raises D(G(z), z) and lowers D(x, E(x))."""
    G, E, D = make_generator(), nn.Linear(WIDTH, LATENT).double(), Pair()
    optimizer = SGD([*G.parameters(), *E.parameters()], 1e-3)
    topk = TopK(direction=direction)

    def step():
        z, x = noise(), reals()
        (F.softplus(-D(G(z), z)).mean() + F.softplus(D(x, E(x))).mean()).backward()
        optimizer.step()

    with attach(D, topk):
        for _ in range(99):
            step()
        if direction == "auto":
            with pytest.raises(DirectionUnknown) as caught:
                step()
            for word in ["100 of 100 generator steps", "--direction high", "low"]:
                assert word in str(caught.value)
        else:
            step()
            assert topk.direction == "high"


def test_the_direction_of_low_losses(gan):
    for _ in range(101):
        gan.D(gan.G(noise())).mean().backward()
        gan.opt_G.step()
    assert gan.topk.direction == "low"


# --- switched off -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["line", "attach"])
@pytest.mark.parametrize("how", ["paused", "disabled", "no_grad"])
def test_off_means_untouched(how, way):
    topk = make_topk(2, enabled=how != "disabled")
    setup, z = Setup(topk), noise()
    G, D = copy.deepcopy((setup.G, setup.D))
    F.softplus(-D(G(z))).mean().backward()
    with ExitStack() as stack:
        if way == "attach":
            stack.enter_context(attach(setup.D, topk))
        if how == "paused":
            stack.enter_context(topk.paused())
            stack.enter_context(topk.paused())  # nests
        gated = topk if way == "line" else lambda scores: scores
        if how == "no_grad":
            with torch.no_grad():
                scores = setup.D(setup.G(z))
                assert gated(scores) is scores
            return
        scores = setup.D(setup.G(z))
        assert gated(scores) is scores
        F.softplus(-scores).mean().backward()
        setup.opt_G.step()
    assert_same(gradients(setup.G, setup.D), gradients(G, D))
    assert topk.steps == 0


def test_paused_ends(gan):
    with suppress(ZeroDivisionError), gan.topk.paused():
        raise ZeroDivisionError
    gan.generator_step()
    assert gan.topk.report().dropped == 4


# --- gather -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["high", "low"])
def test_gather_keeps_rows_in_order_with_their_companions(direction):
    topk = make_topk(3, direction=direction)
    scores = torch.randn(BATCH, 1, dtype=torch.float64, requires_grad=True)
    labels, images = torch.arange(BATCH), torch.randn(BATCH, 2, 3)
    rows = best_rows(scores.flatten().tolist(), 3, direction == "high")
    found, kept, pictures = topk.gather(scores, labels, images)
    assert kept.tolist() == rows
    assert torch.equal(found, scores[rows])
    assert torch.equal(pictures, images[rows])
    assert torch.equal(topk.gather(scores), scores[rows])
    with torch.no_grad():
        assert torch.equal(topk.gather(scores), scores[rows])
    weights = torch.rand(3, 1, dtype=torch.float64)
    (found * weights).sum().backward()
    expected = torch.zeros_like(scores)
    expected[rows] = weights
    assert torch.equal(scores.grad, expected)


def test_gather_equals_the_literal_relativistic_loss():
    """Relativistic-average: a loss that couples the rows, which the gate cannot serve."""
    setup, z = Setup(), noise()
    real_scores = setup.D(reals()).detach()

    def loss(fake_scores):
        return (
            F.softplus(-(fake_scores - real_scores.mean())).mean()
            + F.softplus(real_scores - fake_scores.mean()).mean()
        )

    G, D = copy.deepcopy((setup.G, setup.D))
    loss(D(G(z)).flatten().topk(4).values[:, None]).backward()
    setup.topk = make_topk(4, direction="high")
    loss(setup.topk.gather(setup.D(setup.G(z)))).backward()
    assert error(gradients(setup.G), gradients(G)) <= 1e-12


def test_gather_of_the_whole_batch_is_the_identity_and_votes():
    topk = TopK(gamma=0.5, nu=0.5)
    net = nn.Linear(2, 1)
    optimizer = SGD(net.parameters(), 0.1)
    labels = torch.arange(4)
    scores = net(torch.randn(4, 2))
    found, kept = topk.gather(scores, labels)
    assert torch.equal(found, scores)
    assert kept is labels
    topk.gather(scores).mean().backward()  # low is realistic
    optimizer.step()
    assert (topk.steps, topk.direction) == (1, "low")
    topk.end_epoch()
    scores = net(torch.randn(4, 2))
    rows = best_rows(scores.flatten().tolist(), 2, largest=False)
    assert torch.equal(topk.gather(scores), scores[rows])
    topk.gather(scores).mean().backward()
    optimizer.step()
    report = topk.report()
    assert (report.steps, report.rows, report.dropped, report.last_k) == (2, 8, 2, 2)


def test_gather_does_not_guess():
    with pytest.raises(DirectionUnknown, match="2 of 4 rows") as caught:
        make_topk(2, 4).gather(torch.randn(4, 1, requires_grad=True))
    assert 'direction="high"' in str(caught.value)


def test_gather_checks_companions():
    with pytest.raises(ScoreShapeError, match=r"\(3,\), expected 4 rows"):
        TopK().gather(torch.randn(4, 1), torch.arange(3))


@pytest.mark.parametrize("enabled", [True, False])
def test_gather_switched_off(enabled):
    topk = make_topk(2, 4, enabled=enabled)
    scores, labels = torch.randn(4, 1, requires_grad=True), torch.arange(4)
    with topk.paused():
        assert topk.gather(scores) is scores
        assert topk.gather(scores, labels) == (scores, labels)


# --- state --------------------------------------------------------------------------------------


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("steps", [0, 5, 100, 120])
def test_state_round_trip(steps):
    """The resumed run goes on as the uninterrupted one, direction and vote included."""
    settings = {"gamma": 0.9, "nu": 0.2}
    topk = TopK(**settings)
    scores = torch.randn(8, 1, requires_grad=True)
    optimizer = SGD([scores], 0.0)

    def step(topk, sign):
        scores.grad = None
        (sign * topk(scores)).mean().backward()
        optimizer.step()
        return scores.grad

    for i in range(steps):
        step(topk, 1.0)
        if i % 2:
            topk.end_epoch()
    resumed = TopK(**settings)
    resumed.load_state_dict(saved(topk.state_dict()))
    assert (resumed.epoch, resumed.steps, resumed.k(8)) == (topk.epoch, topk.steps, topk.k(8))
    assert resumed.direction == topk.direction
    for sign in [-1.0] * 3 + [1.0] * 100:
        assert torch.equal(step(resumed, sign), step(topk, sign))
        topk.end_epoch()
        resumed.end_epoch()
    assert resumed.direction == topk.direction
    for key, value in topk.state_dict().items():
        other = resumed.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other


def test_resume_under_other_settings_shows_the_difference():
    state = saved(TopK(gamma=0.9, nu=0.2, direction="low").state_dict())
    topk = TopK(gamma=0.99, nu=0.2)
    with pytest.raises(ResumeMismatch) as caught:
        topk.load_state_dict(state)
    message = str(caught.value)
    assert "gamma: 0.9 in the checkpoint, 0.99 now" in message
    assert "direction: 'low' in the checkpoint, 'auto' now" in message
    assert "nu:" not in message
    assert (topk.epoch, topk.k(64)) == (0, 64)


def test_resume_with_a_contradicting_start_epoch():
    topk = TopK()
    for _ in range(3):
        topk.end_epoch()
    TopK(start_epoch=3).load_state_dict(topk.state_dict())
    with pytest.raises(ResumeMismatch, match="epoch: 3 in the checkpoint, start_epoch 4 now"):
        TopK(start_epoch=4).load_state_dict(topk.state_dict())


# --- what attach leaves behind ------------------------------------------------------------------


class Inherits(Critic):
    """No forward of its own."""


class CallsSuper(Critic):
    def forward(self, x):
        return 1.0 * super().forward(x)


def footprint() -> dict[str, object]:
    """The methods that attach may wrap for a while, as the classes hold them."""
    methods = {
        f"{cls.__qualname__}.{name}": value
        for cls in [
            Critic,
            Inherits,
            CallsSuper,
            nn.Module,
            torch.optim.Optimizer,
            _BaseDataLoaderIter,
            DataLoader,
            *_BaseDataLoaderIter.__subclasses__(),
        ]  # fmt: skip
        for name, value in vars(cls).items()
        if callable(value) or isinstance(value, (classmethod, staticmethod, property))
    }
    hooks = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    return methods | {"hooks": sum(map(len, hooks))}


def assert_footprint(before: dict[str, object]) -> None:
    """The very same objects, not only equal ones."""
    after = footprint()
    assert after.keys() == before.keys()
    assert [key for key in after if after[key] is not before[key]] == []


@pytest.mark.parametrize("cls", [Critic, Inherits, CallsSuper])
@pytest.mark.parametrize("how", ["with", "exception", "remove"])
@pytest.mark.parametrize("with_loader", [False, True])
def test_everything_is_put_back(cls, how, with_loader):
    gc.collect()
    attach(Critic(), TopK()).remove()  # ends the listening of ledgers that died
    setup = Setup()
    setup.D = cls()
    loader = DataLoader(TensorDataset(reals()), 4) if with_loader else None
    before, own = footprint(), dict(vars(setup.D))
    attachment = attach(setup.D, setup.topk, loader=loader)
    assert footprint() != before
    if how == "remove":
        setup.generator_step()
        attachment.remove()
        attachment.remove()
    else:
        with suppress(KeyError), attachment:
            list(loader or [])
            setup.generator_step()
            if how == "exception":
                raise KeyError
    assert_footprint(before)
    assert ("forward" in vars(cls)) == (cls is not Inherits)
    assert vars(setup.D).keys() == own.keys()
    setup.generator_step()
    assert setup.topk.report().rows == BATCH


def test_attaching_again_after_remove(gan):
    """And twice at once is refused."""
    with pytest.raises(ConfigError, match="attached already"):
        attach(gan.D, TopK())
    other = Critic()
    with attach(other, gan.topk):
        pass
    gan.generator_step()  # the other one's end did not end this one
    assert gan.topk.steps == 1


@pytest.mark.parametrize("order", [1, -1])
def test_overlapping_attachments_end_in_any_order(order):
    gc.collect()
    attach(Critic(), TopK()).remove()
    before = footprint()
    attachments = [attach(D, TopK()) for D in (Critic(), Inherits(), CallsSuper(), Critic())]
    for attachment in attachments[::order]:
        attachment.remove()
    assert_footprint(before)


def test_wrong_use():
    with pytest.raises(ConfigError, match="found a function as the critic"):
        attach(lambda x: x, TopK())
    with pytest.raises(ConfigError, match="found a list as the loader"):
        attach(Critic(), TopK(), loader=[])


def test_a_removed_attachment_is_freed():
    gc.collect()
    D = Critic()
    attachment = attach(D, TopK())
    refs = [weakref.ref(D), weakref.ref(attachment)]
    attachment.remove()
    del attachment, D
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


# --- who is gated -------------------------------------------------------------------------------


def gated_rows(G: nn.Module, critic, topk: TopK) -> int:
    """How many rows a generator step by ``critic`` sends through the gate."""
    before = topk.report().rows
    clear(G)
    F.softplus(-critic(G(noise()))).mean().backward()
    SGD(G.parameters(), 0.0).step()
    return topk.report().rows - before


def test_calls_of_every_style(gan):
    for call in (gan.D, gan.D.forward, gan.D.__call__, lambda x: type(gan.D).forward(gan.D, x)):
        assert gated_rows(gan.G, call, gan.topk) == BATCH


def test_two_instances_of_a_class(gan):
    other = Critic()
    assert gated_rows(gan.G, other, gan.topk) == 0
    assert gated_rows(gan.G, gan.D, gan.topk) == BATCH


def test_super_forward_gates_once():
    G, D, base, topk = make_generator(), CallsSuper(), Critic(), make_topk(4)
    with attach(base, topk), attach(D, topk):
        assert gated_rows(G, D, topk) == BATCH
        assert gated_rows(G, base, topk) == BATCH


def test_a_critic_within_the_critic_gates_once():
    G, D, topk = make_generator(), Critic(), make_topk(4)
    whole = nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), D)
    with attach(whole, topk), attach(D, topk):
        assert gated_rows(G, whole, topk) == BATCH
        assert gated_rows(G, D, topk) == BATCH


@pytest.mark.parametrize("patched", [False, True])
def test_a_deepcopy_is_a_plain_critic(patched):
    """As an EMA of the critic: its own weights, its own forward, no gate."""
    setup = Setup()
    if patched:  # an instance's own forward, as wrapper libraries set it
        setup.D.forward = types.MethodType(lambda self, x: type(self).forward(self, x), setup.D)
    with attach(setup.D, setup.topk):
        ema = copy.deepcopy(setup.D)
        assert gated_rows(setup.G, setup.D, setup.topk) == BATCH
        assert gated_rows(setup.G, ema, setup.topk) == 0
        with torch.no_grad():
            ema.score[0].bias += 1
            x = reals()
            assert torch.allclose(ema(x), setup.D(x) + 1)


def test_pickles_know_nothing_of_top_k(gan):
    buffer = io.BytesIO()
    torch.save(gan.D, buffer)
    assert b"topk_plugin" not in buffer.getvalue()
    assert b"topk_plugin" not in pickle.dumps(gan.D)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = reals()
    assert torch.equal(loaded(x), gan.D(x))
    assert gated_rows(gan.G, loaded, gan.topk) == 0


def test_checkpoints_load_strictly_without_the_plugin(gan, tmp_path):
    torch.save({"D": gan.D.state_dict(), "opt": gan.opt_G.state_dict()}, tmp_path / "ckpt.pt")
    script = f"""
import sys, torch
from torch import nn
state = torch.load({str(tmp_path / "ckpt.pt")!r}, weights_only=True)
net = nn.Module()
net.body = nn.Sequential(nn.Linear({WIDTH}, 16))
net.score = nn.Sequential(nn.Linear(16, 1))
net.load_state_dict(state["D"], strict=True)
torch.optim.SGD([torch.zeros(1) for _ in range({len(list(gan.G.parameters()))})], 1.0)\\
    .load_state_dict(state["opt"])
assert "topk_plugin" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- in-place operations ------------------------------------------------------------------------


class InPlace(nn.Module):
    """A critic that changes its input or its output in place."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.net = nn.Sequential(
            nn.LeakyReLU(0.3, inplace=True) if "input" in where else nn.Identity(),
            nn.Linear(WIDTH, 5),
            nn.BatchNorm1d(5),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(5, 1),
        ).double()

    def forward(self, x):
        if "detour" in self.where:
            x = x * 1.5
        out = self.net(x)
        return out.mul_(2) if "output" in self.where else out


@pytest.mark.parametrize("way", ["line", "score", "shielded", "observe"])
@pytest.mark.parametrize("after", ["nothing", "squeeze_", "mul_", "view, add_"])
@pytest.mark.parametrize("where", ["input", "output", "input, output", "input after a detour"])
def test_in_place_operations(where, after, way):
    """Tanh needs its output in the backward, so the generator ends in a linear layer here."""
    loss = LOSSES["non-saturating"]
    G = nn.Sequential(nn.Linear(LATENT, 10), nn.ReLU(), nn.Linear(10, WIDTH)).double()
    D, z = InPlace(where), noise()

    def change(out):
        if after == "squeeze_":
            return out.squeeze_(1)
        if after == "mul_":
            return out.mul_(3)
        if after == "view, add_":
            out.view(-1).add_(1)
        return out

    k = BATCH if way == "observe" else 3
    G1, D1 = copy.deepcopy((G, D))
    literal(loss, change(D1(G1(z))), k).backward()
    G2, D2 = copy.deepcopy((G, D))
    loss.of(change(D2(G2(z)))).backward()
    topk = make_topk(k, gate=way if way in ("score", "shielded") else "auto")
    with ExitStack() as stack:
        if way != "line":
            stack.enter_context(attach(D, topk))
        out = D(G(z))
        loss.of(change(topk(out) if way == "line" else out)).backward()
    assert error(gradients(G), gradients(G1)) <= 1e-12
    if way in ("shielded", "observe"):
        assert_same(gradients(D), gradients(D2))


def test_a_fake_that_the_critic_changed_and_the_loss_reads_again():
    """Without the plugin the changed fake carries the change's gradient; so it has to with it.

    Not so for the shielded gate, which stands between the two: see attach().
    """
    loss = LOSSES["non-saturating"]
    G = nn.Sequential(nn.Linear(LATENT, 10), nn.ReLU(), nn.Linear(10, WIDTH)).double()
    D, z = InPlace("input"), noise()

    def total(G, D, score):
        fake = G(z)
        scores = D(fake)
        return score(scores) + fake.pow(2).mean()

    G1, D1 = copy.deepcopy((G, D))
    total(G1, D1, lambda scores: literal(loss, scores, 3)).backward()
    with attach(D, make_topk(3, gate="score")):
        total(G, D, loss.of).backward()
    assert error(gradients(G), gradients(G1)) <= 1e-12


def test_a_saturated_loss_postpones_the_vote():
    """No gradient reaches the scores for 150 steps; then the direction is still to be found."""
    torch.manual_seed(0)
    G, D = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    topk = TopK(gamma=0.5, nu=0.5)
    with attach(D, topk):
        for step in range(260):
            scores = D(G(torch.randn(4, 2).double()))
            optimizer.zero_grad()
            (scores * (0.0 if step < 150 else 1.0)).mean().backward()
            optimizer.step()
    assert (topk.steps, topk.direction) == (260, "low")


def test_outputs_like_scores_that_are_left_alone_are_named():
    torch.manual_seed(0)
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = D, nn.Linear(2, 1)

        def forward(self, x):
            return self.first(x), self.second(x)

    critic = Pair()
    with attach(critic, TopK()), pytest.warns(UserWarning, match=r"--heads 0,1"):
        critic(G(torch.randn(4, 2)))


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


def test_a_maximizing_optimizer_needs_a_direction():
    torch.manual_seed(0)
    for direction in ("auto", "high"):
        G, D = nn.Linear(2, 2), nn.Linear(2, 1)
        optimizer = torch.optim.SGD(G.parameters(), 0.1, maximize=True)
        with attach(D, TopK(direction=direction)):
            D(G(torch.randn(4, 2))).mean().backward()
            if direction == "auto":
                with pytest.raises(DirectionUnknown, match="maximises"):
                    optimizer.step()
            else:
                optimizer.step()
