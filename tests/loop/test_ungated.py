"""Critics in the generator's loss that are not attached are named, and nothing else is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, LATENT, WIDTH, Critic, make_generator, noise, reals
from stepping import SGD
from torch import Tensor, nn
from torches import compiles, needs_torch

from topk_plugin import TopK, attach

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """Other tests of this process may have compiled something."""
    monkeypatch.setattr("topk_plugin.loop.witness.something_is_compiled", lambda: False)


class Other(nn.Module):
    """Gives ``width`` numbers for each sample of ``inputs``."""

    def __init__(self, width: int = 1, inputs: int = WIDTH) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, width)).double()

    def forward(self, x):
        return self.net(x)


class Both(nn.Module):
    """A critic inside, and another one beside it."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic, self.other = critic, Other()

    def forward(self, x):
        return self.critic(x) + self.other(x)


def said(
    train: Callable[[nn.Module, nn.Module, torch.optim.Optimizer, torch.optim.Optimizer], object],
    steps: int = 8,
) -> list[str]:
    """What attach warns of while ``train(G, D, opt_G, opt_D)`` runs ``steps`` times."""
    G, D = make_generator(), Critic()
    opt_G, opt_D = SGD(G.parameters(), 0.01), SGD(D.parameters(), 0.01)
    with warnings.catch_warnings(record=True) as caught, attach(D, TopK(gamma=0.5, nu=0.5)):
        warnings.simplefilter("always")
        for _ in range(steps):
            train(G, D, opt_G, opt_D)
    return [str(one.message) for one in caught if "not gated" in str(one.message)]


def adversarial(critic: nn.Module, optimizer: torch.optim.Optimizer, fake: Tensor) -> None:
    optimizer.zero_grad()
    (F.softplus(-critic(reals())).mean() + F.softplus(critic(fake)).mean()).backward()
    optimizer.step()


def generator_step(
    opt_G: torch.optim.Optimizer, loss: Callable[[], Tensor], *others: torch.optim.Optimizer
) -> None:
    for optimizer in (opt_G, *others):
        optimizer.zero_grad()
    loss().backward()
    for optimizer in (opt_G, *others):
        optimizer.step()


def loss_of(*critics: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda fake: sum(F.softplus(-critic(fake)).mean() for critic in critics)


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_second_critic_with_an_optimizer(frozen, detached):
    """Frozen in the generator's step or not; its own step may send fakes that are not detached."""
    B = Other()
    opt_B = SGD(B.parameters(), 0.01)

    def train(G, D, opt_G, opt_D):
        fake = G(noise())
        for critic, optimizer in ((D, opt_D), (B, opt_B)):
            adversarial(critic, optimizer, fake.detach() if detached else G(noise()))
        B.requires_grad_(not frozen)
        generator_step(opt_G, lambda: loss_of(D, B)(fake))
        B.requires_grad_(True)

    (text,) = said(train)
    assert f"{__name__}:Other ({BATCH}, 1)" in text
    assert "attach it" in text


def test_a_backward_for_each_critic():
    B = Other()

    def train(G, D, opt_G, opt_D):
        adversarial(D, opt_D, G(noise()).detach())
        opt_G.zero_grad()
        for critic in (B, D):
            loss_of(critic)(G(noise())).backward()
        opt_G.step()

    assert len(said(train)) == 1


def test_both_losses_before_either_optimizer():
    B = Other()
    opt_B = SGD(B.parameters(), 0.01)

    def train(G, D, opt_G, opt_D):
        fake = G(noise())
        opt_G.zero_grad()
        loss_of(D, B)(fake).backward()
        for optimizer in (opt_D, opt_B):
            optimizer.zero_grad()
        for critic in (D, B):
            loss = F.softplus(-critic(reals())).mean() + F.softplus(critic(fake.detach())).mean()
            loss.backward()
        for optimizer in (opt_D, opt_B, opt_G):
            optimizer.step()

    assert len(said(train)) == 1


def test_one_beside_an_attached_one_in_a_module():
    wholes: list[Both] = []

    def train(G, D, opt_G, opt_D):
        if not wholes:
            wholes.append(Both(D))
        generator_step(opt_G, lambda: loss_of(wholes[0])(G(noise())))

    (text,) = said(train)
    assert f"{__name__}:Other" in text
    assert "Both" not in text


def test_a_copy_of_the_critic_and_a_class_of_torchs():
    copies: list[nn.Module] = []
    plain = nn.Sequential(nn.Linear(WIDTH, 1)).double()

    def train(G, D, opt_G, opt_D):
        if not copies:
            copies.append(copy.deepcopy(D))
        generator_step(opt_G, lambda: loss_of(D, *copies, plain)(G(noise())))

    (text,) = said(train)
    assert "losses:Critic" in text
    assert "torch.nn.modules.container:Sequential" in text
    assert "--critic torch" not in text


def test_a_patch_map():
    class Patches(Other):
        def forward(self, x):
            return super().forward(x)[:, None, None, :].expand(-1, 1, 2, -1).clone()

    B = Patches()
    (text,) = said(
        lambda G, D, opt_G, opt_D: generator_step(opt_G, lambda: loss_of(D, B)(G(noise())))
    )
    assert f"Patches ({BATCH}, 1, 2, 1)" in text


def others(name: str) -> tuple[nn.Module, Callable[[Tensor, Tensor, nn.Module], Tensor]]:
    """A network that is no critic, and the term of it in the generator's loss."""
    one, wide = Other(), Other(7)
    image = nn.Conv2d(1, 1, 3, padding=1).double()
    return {
        "perceptual": (one.requires_grad_(False), lambda fake, z, D: one(fake).mean()),
        "features": (wide, lambda fake, z, D: wide(fake).square().mean()),
        "to an image": (
            image, lambda fake, z, D: image(fake.reshape(BATCH, 1, 2, -1)).square().mean()
        ),
        "without a gradient": (one, lambda fake, z, D: one(fake).detach().mean()),
        "of detached samples": (one, lambda fake, z, D: one(fake.detach()).mean()),
        "of the latent": (
            latent := Other(1, LATENT), lambda fake, z, D: latent(z).mean()
        ),
        "on the critic's features": (
            head := Other(1, 16), lambda fake, z, D: head(D.body(fake)).mean()
        ),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["perceptual", "features", "to an image", "without a gradient", "of detached samples",
     "of the latent", "on the critic's features"],
)  # fmt: skip
def test_what_is_no_critic_is_not_named(name):
    _, term = others(name)

    def train(G, D, opt_G, opt_D):
        adversarial(D, opt_D, G(noise()).detach())
        z = noise()
        fake = G(z)
        generator_step(opt_G, lambda: loss_of(D)(fake) + term(fake, z, D))

    assert said(train) == []


@pytest.mark.parametrize("owner", ["its own", "the generator's second"])
def test_what_learns_along_with_the_generator_is_not_named(owner):
    """A regressor from the generator's own backward; or part of a second generator's optimizer."""
    R = Other(LATENT)
    head = nn.Linear(LATENT, 1).double()
    learns = [SGD([*R.parameters(), *head.parameters()], 0.01)]

    def train(G, D, opt_G, opt_D):
        if owner != "its own" and len(learns) == 1:
            learns[:] = [SGD([*head.parameters(), *R.parameters(), *G[3].parameters()], 0.01)] * 2
        adversarial(D, opt_D, G(noise()).detach())
        z = noise()
        fake = G(z)
        generator_step(
            opt_G, lambda: loss_of(D)(fake) + (head(R(fake)) - z[:, :1]).square().mean(), learns[0]
        )

    assert said(train) == []


def test_a_critic_of_another_loop_is_not_named():
    """It gets no gradient in the generator's own backward, only in its own steps."""
    B, H = Other(), make_generator()
    opt_B, opt_H = SGD(B.parameters(), 0.01), SGD(H.parameters(), 0.01)

    def train(G, D, opt_G, opt_D):
        adversarial(D, opt_D, G(noise()).detach())
        adversarial(B, opt_B, G(noise()))  # not detached, though it is of no use
        generator_step(opt_H, lambda: loss_of(B)(H(noise())))
        generator_step(opt_G, lambda: loss_of(D)(G(noise())))

    assert said(train) == []


def test_two_attached_critics():
    B = Other()
    with attach(B, TopK(gamma=0.5, nu=0.5)):
        assert not said(
            lambda G, D, opt_G, opt_D: generator_step(opt_G, lambda: loss_of(D, B)(G(noise())))
        )


@compiles
@pytest.mark.parametrize(
    "compiled",
    [
        "module",
        pytest.param("in place", marks=needs_torch("2.14", "compiles no Sequential in place")),
    ],
)
def test_nothing_is_looked_at_where_modules_are_compiled(compiled, monkeypatch):
    """A hook would have graphs made anew, and torch warns of it."""
    monkeypatch.undo()
    torch._dynamo.utils.counters.clear()
    G, D = make_generator(), Critic()
    opt_G, opt_D = SGD(G.parameters(), 0.01), SGD(D.parameters(), 0.01)
    if compiled == "in place":
        G.compile(backend="eager", fullgraph=True)
    made = torch.compile(G, backend="eager", fullgraph=True) if compiled == "module" else G
    with warnings.catch_warnings(), attach(D, TopK(gamma=0.5, nu=0.5)):
        warnings.simplefilter("error")
        for _ in range(6):
            adversarial(D, opt_D, made(noise()).detach())
            generator_step(opt_G, lambda: loss_of(D)(made(noise())))
        assert not torch.nn.modules.module._global_forward_hooks


@compiles
def test_tracing_and_compiling_while_all_modules_are_looked_at():
    def train(G, D, opt_G, opt_D):
        generator_step(opt_G, lambda: loss_of(D)(G(noise())))
        assert torch.nn.modules.module._global_forward_hooks
        G.eval()
        assert torch.equal(torch.jit.trace(G, noise())(z := noise()), G(z))
        assert torch.equal(torch.jit.script(G)(z), G(z))
        # as torch.compile's wrapper warns of the hook
        copied = copy.deepcopy(G)
        copied.compile(backend="eager", fullgraph=True)
        assert torch.equal(copied(z), G(z))
        G.train()

    assert said(train, 3) == []
