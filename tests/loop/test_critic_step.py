"""The critic's own step says the direction too, where its fakes are known for fakes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, Critic, make_generator, noise, reals
from stepping import SGD
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from topk_plugin import TopK, attach
from topk_plugin.errors import DirectionUnknown

pytestmark = pytest.mark.usefixtures("seeded")

Score = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """Other tests of this process may have compiled something."""
    monkeypatch.setattr("topk_plugin.loop.witness.something_is_compiled", lambda: False)


class Loop:
    """A GAN whose critic scores reals high by ``critic_loss(real, fake)``.

    Args:
        fakes: how the critic's step gets its fakes, of a generator and a latent.
        generator_loss: of scores of fakes.
    """

    def __init__(
        self,
        fakes: Callable[[nn.Module, Tensor], Tensor] = lambda G, z: G(z).detach(),
        generator_loss: Score = lambda s: F.softplus(-s).mean(),
        critic_loss: Callable[[Tensor, Tensor], Tensor] = lambda real, fake: (
            F.softplus(-real).mean() + F.softplus(fake).mean()
        ),
        topk: TopK | None = None,
        rate: float = 0.01,
    ) -> None:
        self.G, self.D = make_generator(), Critic()
        self.opt_G, self.opt_D = SGD(self.G.parameters(), rate), SGD(self.D.parameters(), rate)
        self.fakes, self.critic_loss, self.generator_loss = fakes, critic_loss, generator_loss
        self.topk = topk or TopK(gamma=0.5, nu=0.5)

    def critic_step(self) -> None:
        fake = self.fakes(self.G, noise())
        self.opt_D.zero_grad()
        self.opt_G.zero_grad()
        self.critic_loss(self.D(reals() + 1), self.D(fake)).backward()
        self.opt_D.step()

    def generator_step(self) -> None:
        self.opt_G.zero_grad()
        self.generator_loss(self.D(self.G(noise()))).backward()
        self.opt_G.step()

    def train(self, steps: int = 12) -> None:
        for _ in range(steps):
            self.critic_step()
            self.generator_step()

    @property
    def says(self) -> str:
        return self.topk.training.vote.of_critic


def under_no_grad(G: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return G(z)


def not_by_call(G: nn.Module, z: Tensor) -> Tensor:
    """Its inner modules are called; the last one with parameters is not the last one."""
    return G.forward(z).detach()


READABLE = {
    "not detached": lambda G, z: G(z),
    "detach": lambda G, z: G(z).detach(),
    "data": lambda G, z: G(z).data,
    "no_grad": under_no_grad,
    "a view": lambda G, z: G(z).detach().reshape(BATCH, -1),
    "detached and rescaled in place": lambda G, z: G(z).detach().mul_(0.5),
    "parallel": lambda G, z: nn.DataParallel(G)(z).detach(),
    "augmented, not detached": lambda G, z: G(z) + 0.1,
}
UNREADABLE = {
    "augmented": lambda G, z: G(z).detach() + 0.1,
    "not by a call": not_by_call,
    "another network's": lambda G, z: reals(),
}
AWAY = {
    "high": lambda s: F.softplus(-s).mean(),
    "low": lambda s: F.softplus(s).mean(),
}


@pytest.mark.parametrize("fakes", READABLE)
def test_a_contradiction_is_an_error(fakes):
    """The generator's loss asks for low scores while the critic raises those of reals."""
    loop = Loop(READABLE[fakes], AWAY["low"])
    with attach(loop.D, loop.topk):
        loop.train()
        assert loop.says == "high"
        with pytest.raises(DirectionUnknown, match="asks for low scores .*--direction high"):
            loop.topk.end_epoch()
        with pytest.raises(DirectionUnknown):
            loop.topk.check()
    assert loop.topk.epoch == 0, "before k falls"


@pytest.mark.parametrize("fakes", READABLE)
def test_the_vote_is_confirmed(fakes):
    loop = Loop(READABLE[fakes])
    with attach(loop.D, loop.topk):
        loop.train()
        loop.topk.end_epoch()
        loop.topk.check()
    assert loop.says == "high"
    assert loop.topk.training.vote.confirmed


@pytest.mark.parametrize("asked", AWAY)
@pytest.mark.parametrize("fakes", UNREADABLE)
def test_what_is_not_known_for_a_fake_is_not_read(fakes, asked):
    loop = Loop(UNREADABLE[fakes], AWAY[asked])
    with attach(loop.D, loop.topk):
        loop.train()
        loop.topk.end_epoch()
    assert loop.says == "unread"
    assert not loop.topk.training.vote.confirmed


@pytest.mark.parametrize("detached", [True, False, "no, but computed on"])
@pytest.mark.parametrize("order", ["reals first", "fakes first", "reals around"])
def test_reals_and_fakes_in_one_call(order, detached):
    loop = Loop(generator_loss=AWAY["low"])

    def critic_step():
        loop.opt_D.zero_grad()
        fake = loop.G(noise())
        fake = fake.detach() if detached is True else fake * 1.1 if detached else fake
        parts = {
            "reals first": [reals() + 1, fake],
            "fakes first": [fake, reals() + 1],
            "reals around": [reals()[:3] + 1, fake, reals()[3:] + 1],
        }[order]
        at = {"reals first": BATCH, "fakes first": 0, "reals around": 3}[order]
        both = loop.D(torch.cat(parts))
        of_reals = torch.cat([both[:at], both[at + BATCH :]])
        loop.critic_loss(of_reals, both[at : at + BATCH]).backward()
        loop.opt_D.step()

    with attach(loop.D, loop.topk):
        for _ in range(12):
            critic_step()
            loop.generator_step()
        assert loop.says == "high"
        with pytest.raises(DirectionUnknown, match="asks for low scores .*--direction high"):
            loop.topk.end_epoch()


def test_a_condition_beside_the_samples():
    """As a critic of pairs of images gets them, joined by their channels."""
    loop = Loop(generator_loss=AWAY["low"])
    judge = nn.Conv2d(2, 1, 2).double()

    def score(image, condition):
        return judge(torch.cat([condition, image.reshape(BATCH, 1, 2, -1)], 1)).mean((1, 2, 3))

    optimizer = SGD(judge.parameters(), 0.01)
    with attach(judge, loop.topk):
        for _ in range(12):
            fake, real = loop.G(noise()), reals() + 1
            condition = torch.rand(BATCH, 1, 2, fake.shape[1] // 2, dtype=torch.float64)
            optimizer.zero_grad()
            of_fakes = score(fake.detach(), condition)
            loop.critic_loss(score(real, condition), of_fakes).backward()
            optimizer.step()
            loop.opt_G.zero_grad()
            loop.generator_loss(score(fake, condition)).backward()
            loop.opt_G.step()
        with pytest.raises(DirectionUnknown, match="critic's own steps"):
            loop.topk.end_epoch()


def test_blank_samples_are_no_copies():
    """A layer of the generator gives zeros, and so are the ends of real batches."""
    loop = Loop()
    loop.fakes = UNREADABLE["augmented"]
    width = reals().shape[1]
    blank = nn.Linear(3, width, bias=False).double()
    blank.weight.data.zero_()
    loop.opt_G.param_groups[0]["params"].extend(blank.parameters())

    def critic_step():
        loop.opt_D.zero_grad()
        blank(noise()[:, :3])
        real = reals() + 1
        real[[0, -1]] = 0
        loop.critic_loss(loop.D(real), loop.D(loop.G(noise()).detach() + 0.1)).backward()
        loop.opt_D.step()

    with attach(loop.D, loop.topk):
        for _ in range(12):
            critic_step()
            loop.generator_step()
        loop.topk.end_epoch()
    assert loop.says == "unread"


@pytest.mark.parametrize("first", ["critic", "generator"])
def test_one_fake_for_both_steps(first):
    loop = Loop(generator_loss=AWAY["low"])

    def critic_step(fake):
        loop.opt_D.zero_grad()
        loop.critic_loss(loop.D(reals()), loop.D(fake.detach())).backward()
        loop.opt_D.step()

    with attach(loop.D, loop.topk):
        for _ in range(12):
            fake = loop.G(noise())
            if first == "critic":
                critic_step(fake)
            loop.opt_G.zero_grad()
            loop.generator_loss(loop.D(fake)).backward()
            loop.opt_G.step()
            if first == "generator":
                critic_step(fake)
        with pytest.raises(DirectionUnknown, match="critic's own steps"):
            loop.topk.end_epoch()


def test_a_generators_loss_that_is_backwarded_before_the_critics_step():
    """The critic's optimizer steps first, on gradients of both losses; what it got says nothing."""
    loop = Loop()
    with attach(loop.D, loop.topk):
        for _ in range(12):
            loop.opt_D.zero_grad()
            loop.opt_G.zero_grad()
            F.softplus(-loop.D(reals())).mean().backward()
            loop.generator_loss(loop.D(loop.G(noise()))).backward()
            loop.opt_D.step()
            loop.opt_G.step()
        loop.topk.end_epoch()
    assert loop.says == "unread"


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def one_backward(first: str, direction: str = "auto", maximize: bool = False) -> Loop:
    """A loop whose networks learn from one loss: reversed for G, or D's optimizer ascends it."""
    loop = Loop(topk=TopK(gamma=0.5, nu=0.5, direction=direction))
    loop.opt_D = torch.optim.SGD(loop.D.parameters(), 0.01, maximize=maximize)
    optimizers = [loop.opt_D, loop.opt_G] if first == "critic" else [loop.opt_G, loop.opt_D]
    with attach(loop.D, loop.topk):
        for _ in range(6):
            for optimizer in optimizers:
                optimizer.zero_grad()
            fake = loop.G(noise())
            loss = loop.critic_loss(
                loop.D(reals()), loop.D(fake if maximize else Reversed.apply(fake))
            )
            (-loss if maximize else loss).backward()
            for optimizer in optimizers:
                optimizer.step()
        loop.topk.end_epoch()
    return loop


@pytest.mark.parametrize("first", ["critic", "generator"])
def test_a_gradient_that_is_reversed_says_nothing_of_the_direction(first):
    with pytest.raises(DirectionUnknown, match=r"in [56] of 6 generator steps the critic's opt"):
        one_backward(first)
    assert one_backward(first, direction="high").topk.direction == "high"


@pytest.mark.parametrize("first", ["critic", "generator"])
def test_one_loss_that_the_critic_ascends_is_the_generators_too(first):
    assert one_backward(first, maximize=True).topk.direction == "high"


def test_a_critic_whose_optimizer_ascends_is_read_the_other_way_round():
    loop = Loop(
        critic_loss=lambda real, fake: -(F.softplus(-real).mean() + F.softplus(fake).mean())
    )
    loop.opt_D = torch.optim.SGD(loop.D.parameters(), 0.01, maximize=True)
    with attach(loop.D, loop.topk):
        loop.train()
        loop.topk.end_epoch()
    assert (loop.says, loop.topk.direction) == ("high", "high")


def test_a_generator_that_hands_its_input_on():
    """What it returns of its input is no fake."""

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_generator()

        def forward(self, z, x):
            return self.net(z), x

    loop = Loop()
    loop.G = Pairs()
    loop.opt_G = SGD(loop.G.parameters(), 0.01)
    with attach(loop.D, loop.topk):
        for _ in range(12):
            fake, real = loop.G(noise(), reals())
            loop.opt_D.zero_grad()
            loop.critic_loss(loop.D(real), loop.D(fake.detach())).backward()
            loop.opt_D.step()
            loop.opt_G.zero_grad()
            loop.generator_loss(loop.D(fake)).backward()
            loop.opt_G.step()
        loop.topk.end_epoch()
    assert loop.says == "high"


def lsgan(real: float, fake: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda r, f: ((r - real) ** 2).mean() + ((f - fake) ** 2).mean()


class Flipped:
    """BCE that now and then takes fakes for reals, as some recipes do."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        self.steps += 1
        if self.steps % 5 == 0:
            real, fake = fake, real
        return F.softplus(-real).mean() + F.softplus(fake).mean()


def penalised(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean() + 1e-3 * real.square().mean()


def smooth(real: Tensor, fake: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits
    return bce(real, torch.full_like(real, 0.9)) + bce(fake, torch.full_like(fake, 0.1))


SOUND = {  # the critic's loss, the generator's, and where the critic's scores begin
    "LSGAN, from below": (lsgan(1, 0), lambda s: ((s - 1) ** 2).mean(), -0.4),
    "LSGAN, from above": (lsgan(1, 0), lambda s: ((s - 1) ** 2).mean(), 0.8),
    "LSGAN, symmetric": (lsgan(1, -1), lambda s: ((s - 1) ** 2).mean(), 0.0),
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda s: -s.mean(), 0.0),
    "hinge, saturated": (
        lambda r, f: F.relu(-9 - r).mean() + F.relu(-9 + f).mean(), lambda s: -s.mean(), 0.0
    ),
    "smooth labels": (smooth, AWAY["high"], 0.0),
    "flipped labels": (Flipped(), AWAY["high"], 0.0),
    "WGAN": (penalised, lambda s: -s.mean(), 0.0),
    "WGAN, flipped": (lambda r, f: r.mean() - f.mean(), lambda s: s.mean(), 0.0),
    "relativistic": (lambda r, f: F.softplus(f - r).mean(), lambda s: -s.mean(), 0.0),
    "energy": (lambda r, f: r.mean() + F.relu(1 - f).mean(), lambda s: s.mean(), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("fakes", ["detach", "not detached"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_losses_are_no_contradiction(name, fakes):
    critic_loss, generator_loss, start = SOUND[name]
    loop = Loop(READABLE[fakes], generator_loss, critic_loss, rate=0.1)
    with torch.no_grad():
        loop.D.score[0].bias.fill_(start)
    with attach(loop.D, loop.topk):
        for _ in range(14):
            loop.train(5)
            loop.topk.end_epoch()
        loop.topk.check()
    expected = "low" if "flipped" in name and "WGAN" in name or name == "energy" else "high"
    assert loop.topk.direction == expected
    assert loop.says in (expected, "unread")


def test_a_gradient_penalty_says_nothing_of_its_samples():
    """The score of a critic that ends in a sigmoid gets a gradient from its penalty too."""
    loop = Loop(rate=1e-5)
    loop.D.score.append(nn.Sigmoid())
    with torch.no_grad():
        loop.D.score[0].bias.fill_(-1)

    def critic_loss(real, fake):
        between = (reals() * 5).requires_grad_()
        (slope,) = torch.autograd.grad(loop.D(between).sum(), between, create_graph=True)
        penalty = 1e4 * (slope.norm(dim=1) + 1).square().mean()
        return -real.log().mean() - (1 - fake).log().mean() + penalty

    loop.critic_loss, loop.generator_loss = critic_loss, lambda p: -p.log().mean()
    with attach(loop.D, loop.topk):
        loop.train()
    assert loop.says == "high"


def test_input_gradients_are_no_step_of_the_critic():
    """A sampler's ascent on the scores, between the critic's loss and its step."""
    loop = Loop()

    def critic_loss(real, fake):
        x = (reals()).requires_grad_()
        torch.autograd.grad(-1e6 * loop.D(x).sum(), x)
        torch.autograd.grad(1e6 * loop.D(x).sum(), x)
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    loop.critic_loss = critic_loss
    with attach(loop.D, loop.topk):
        loop.train()
    assert loop.says == "high"


def test_a_wavering_vote_is_held_against_the_critic_when_it_ends():
    """Until then the generator's loss may still come round."""
    asks = iter("low" if step % 3 else "high" for step in range(200))
    loop = Loop(generator_loss=lambda s: AWAY[next(asks)](s))
    with attach(loop.D, loop.topk):
        loop.train(99)
        loop.topk.end_epoch()
        assert (loop.topk.direction, loop.says) == ("low", "high")
        with pytest.raises(DirectionUnknown, match="in 66 of 100 generator steps"):
            loop.train(1)


@pytest.mark.parametrize("direction", ["high", "low"])
def test_a_direction_that_is_set_stands(direction):
    loop = Loop(topk=TopK(gamma=0.5, nu=0.5, direction=direction))
    with attach(loop.D, loop.topk):
        loop.train()
        loop.topk.end_epoch()
        loop.topk.check()
    assert loop.says == "high"
    assert loop.topk.training.vote.confirmed == (direction == "high")


def test_what_was_read_travels_in_a_checkpoint():
    loop, other = Loop(), TopK(gamma=0.5, nu=0.5)
    with attach(loop.D, loop.topk):
        loop.train()
    state = loop.topk.state_dict()
    other.load_state_dict(state)
    assert other.training.vote.of_critic == "high"
    for key in ("critic", "critic_steps"):  # older ones have none
        del state[key]
    older = TopK(gamma=0.5, nu=0.5)
    older.load_state_dict(state)
    assert older.training.vote.of_critic == "unread"
    assert older.direction == "high"


def hooks() -> list[dict]:
    return [
        dict(getattr(torch_module, name))
        for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
    ]


@pytest.mark.parametrize("fakes", ["detach", "augmented"])
def test_the_look_at_all_modules_ends(fakes):
    """With enough read, or after so many steps; and with the attachment."""
    topk = TopK(gamma=0.5, nu=0.5, spare=False)  # no place is learned, which looks on
    loop = Loop((READABLE | UNREADABLE)[fakes], topk=topk)
    with attach(loop.D, loop.topk):
        assert hooks() == [{}, {}]
        loop.train(4)
        assert hooks() != [{}, {}]
        loop.train(50)
        assert hooks() == [{}, {}]
        assert not loop.topk.ledger.after_step
        assert not loop.topk.ledger.after_zeroing
        read = loop.topk.training.vote.critic_steps
        loop.train(10)
        assert loop.topk.training.vote.critic_steps == read
    loop = Loop()
    with suppress(ZeroDivisionError), attach(loop.D, loop.topk):
        loop.train(4)
        assert hooks() != [{}, {}]
        raise ZeroDivisionError
    assert hooks() == [{}, {}]


def test_no_sample_is_kept_alive():
    loop = Loop()
    kept: list[weakref.ref[Tensor]] = []

    def fakes(G, z):
        fake = G(z).detach()
        kept.append(weakref.ref(fake))
        return fake

    loop.fakes = fakes
    gc.disable()
    try:
        with attach(loop.D, loop.topk):
            loop.train(4)
            assert [one() for one in kept] == [None] * 4
    finally:
        gc.enable()


def test_the_same_bits_with_and_without():
    ends = []
    for looks in (True, False):
        torch.manual_seed(3)
        loop = Loop(READABLE["not detached"], topk=TopK(gamma=0.5, nu=0.5))
        with attach(loop.D, loop.topk) as attachment:
            if not looks:
                attachment.witness._look_away()
                loop.topk.after_counting.remove(attachment.witness._step_counted)
            loop.train(8)
        ends.append([*loop.G.state_dict().values(), *loop.D.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
