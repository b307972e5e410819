"""``topk.generator_step(spare=True)``: the critic forms no gradient of its own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from losses import (
    LOSSES,
    NORMS,
    TOLERANCE,
    WIDTH,
    Critic,
    assert_same,
    backward,
    clear,
    error,
    gradients,
    literal,
    make_generator,
    make_topk,
    noise,
    reals,
)
from operations import Operations
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from topk_plugin import TopK, attach
from topk_plugin.errors import ConfigError

pytestmark = pytest.mark.usefixtures("seeded")
LOSS = LOSSES["non-saturating"]


@pytest.mark.parametrize("gate", ["auto", "score", "shielded"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_generators_gradient_stays_and_the_critic_gets_none(norm, gate):
    G, D, topk = make_generator(), Critic(norm), make_topk(3, gate=gate)
    with attach(D, topk):
        for _ in range(4):
            z = noise()
            G1, D1 = copy.deepcopy((G, D))
            expected, _ = backward(literal(LOSS, D1(G1(z)), 3), G1, D1)
            clear(G, D)
            with topk.generator_step(spare=True):
                LOSS.of(D(G(z))).backward()
            assert error(gradients(G), expected) <= TOLERANCE
            assert all(p.grad is None for p in D.parameters())
            assert all(p.requires_grad for p in D.parameters())
    assert topk.report().dropped == 4 * 5


class Checkpointed(Critic):
    """Its first layers run again in the backward."""

    def __init__(self, norm: str, reentrant: bool) -> None:
        super().__init__(norm)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.score(checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_runs_again_forms_none_either(norm, reentrant):
    G, D, topk = make_generator(), Checkpointed(norm, reentrant), make_topk(3)
    with attach(D, topk):
        for _ in range(4):
            z = noise()
            G1, D1 = copy.deepcopy((G, D))
            expected, _ = backward(literal(LOSS, D1(G1(z)), 3), G1, D1)
            clear(G, D)
            with topk.generator_step(spare=True):
                (LOSS.of(D(G(z))) + 0 * D(reals()).sum()).backward()
            assert error(gradients(G), expected) <= TOLERANCE
            assert all(p.grad is None for p in D.parameters())
            fake, real = G(noise()).detach(), reals()  # and all of it in the next step
            D1 = copy.deepcopy(D)
            (expected,) = backward(F.softplus(D1(fake) - D1(real)).mean(), D1)
            (found,) = backward(F.softplus(D(fake) - D(real)).mean(), D)
            assert_same(found, expected)


def test_it_runs_fewer_operations_than_without_top_k():
    counts = {}
    for how in ("without", "spared"):
        G, topk = make_generator(), make_topk(4, direction="high")
        D = nn.Sequential(*(nn.Linear(WIDTH, WIDTH).double() for _ in range(2)), Critic())
        with attach(D, topk):
            optimizer = torch.optim.SGD(G.parameters(), 0.01)
            for _ in range(60):  # other things are looked at in the first fifty
                clear(G, D)
                step = topk.paused() if how == "without" else topk.generator_step(spare=True)
                with Operations() as operations, step:
                    LOSS.of(D(G(noise()))).backward()
                optimizer.step()
        counts[how] = operations.counts.total()
    assert counts["spared"] < counts["without"]


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_off_unless_asked_for(enabled):
    """And where top-k is."""
    G, D, topk = make_generator(), Critic(), make_topk(3, enabled=enabled)
    with attach(D, topk), topk.generator_step(spare=not enabled):
        LOSS.of(D(G(noise()))).backward()
    assert all(p.grad is not None for p in D.parameters())


def test_what_was_frozen_stays_frozen_and_what_was_there_stays():
    G, D, topk = make_generator(), Critic(), make_topk(3)
    D.score.requires_grad_(False)
    before = torch.ones_like(D.body[0].weight)
    D.body[0].weight.grad = before.clone()
    with attach(D, topk), topk.generator_step(spare=True):
        LOSS.of(D(G(noise()))).backward()
    assert torch.equal(D.body[0].weight.grad, before)
    assert [p.requires_grad for p in D.parameters()] == [True, True, False, False]


def test_an_exception_in_the_critic_thaws_it():
    class Fails(Critic):
        def forward(self, x: Tensor) -> Tensor:
            assert not any(p.requires_grad for p in self.parameters())
            raise KeyError

    G, D, topk = make_generator(), Fails(), make_topk(3)
    with attach(D, topk), pytest.raises(KeyError), topk.generator_step(spare=True):
        D(G(noise()))
    assert all(p.requires_grad for p in D.parameters())
    assert not topk.ledger.spares_critic


def test_all_its_calls_are_spared_and_none_after_the_step():
    """A loss of fakes beside reals, then a critic step."""
    G, D, topk = make_generator(), Critic(), make_topk(3, direction="high")
    opt_G, opt_D = (torch.optim.SGD(net.parameters(), 0.01) for net in (G, D))
    with attach(D, topk):
        for _ in range(2):
            with topk.generator_step(spare=True), topk.generator_step():
                F.softplus(D(reals()).detach() - D(G(noise())) + D(reals())).mean().backward()
            assert all(p.grad is None for p in D.parameters())
            opt_G.step()
            D1, fake, real = copy.deepcopy(D), G(noise()).detach(), reals()
            (expected,) = backward(F.softplus(D1(fake) - D1(real)).mean(), D1)
            (found,) = backward(F.softplus(D(fake) - D(real)).mean(), D)
            assert_same(found, expected)
            opt_D.step()
            clear(G, D)
    assert topk.steps == 2


def test_what_the_generator_shares_with_the_critic_learns_from_the_generator():
    shared = nn.Linear(WIDTH, WIDTH).double()

    def networks() -> tuple[nn.Module, nn.Module]:
        return nn.Sequential(make_generator(), shared), nn.Sequential(shared, Critic())

    G, D = networks()
    z, topk = noise(), make_topk(3)
    G1 = copy.deepcopy(G)
    D1 = copy.deepcopy(D).requires_grad_(False)  # its own copy of the shared layer
    expected, _ = backward(literal(LOSS, D1(G1(z)), 3), G1, D1)
    with attach(D, topk), topk.generator_step(spare=True):
        LOSS.of(D(G(z))).backward()
    assert error(gradients(G), expected) <= TOLERANCE


def test_there_has_to_be_a_critic():
    topk = TopK()
    with pytest.raises(ConfigError, match="found no critic that is attached"):
        topk.generator_step(spare=True)
    with attach(Critic(), topk):
        topk.generator_step(spare=True)
    with pytest.raises(ConfigError, match="found no critic that is attached"):
        topk.generator_step(spare=True)


def test_ddp_waits_for_each_gradient(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        G, D, topk = make_generator(), Critic(), make_topk(3)
        wrapped = nn.parallel.DistributedDataParallel(D)
        fake = G(noise())
        refused = pytest.raises(ConfigError, match="DistributedDataParallel")
        with attach(wrapped, topk), topk.generator_step(spare=True), refused:
            wrapped(fake)
    finally:
        torch.distributed.destroy_process_group()
