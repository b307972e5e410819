"""torch.compile: one graph for every k, the right gradients, and nothing read from the device."""

import pytest
import torch
import torch._dynamo.utils
from torch import nn
from torch.nn.functional import softplus
from torches import compiles, inductor

from topk_plugin import TopK, attach
from topk_plugin.errors import GeneratorStepUnknown

EPOCHS, BATCH = 40, 64
BACKENDS = ["aot_eager", pytest.param("inductor", marks=[inductor, pytest.mark.slow])]
pytestmark = compiles


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def networks(norm: bool) -> tuple[nn.Module, nn.Module]:
    middle = nn.BatchNorm1d(16) if norm else nn.Identity()
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    critic = nn.Sequential(nn.Linear(8, 16, bias=False), middle, nn.LeakyReLU(0.2))
    critic.append(nn.Linear(16, 1))
    return generator.double(), critic.double()


def noise() -> torch.Tensor:
    return torch.randn(BATCH, 4, dtype=torch.float64)


def gradient(loss: torch.Tensor, *modules: nn.Module) -> torch.Tensor:
    """Of all parameters of the first module, in one vector, through ``backward()``."""
    for module in modules:
        module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in modules[0].parameters()])


def literal(generator, critic, z, k) -> torch.Tensor:
    kept = critic(generator(z)).flatten().topk(k).values
    return gradient(softplus(-kept).mean(), generator, critic)


def unique_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_line_a_is_one_graph_for_forty_values_of_k(backend, norm):
    generator, critic = networks(norm)
    topk = TopK(gamma=0.92, nu=0.01, restore=(30, EPOCHS - 2))  # falls, and goes back to B
    step = torch.compile(
        lambda z: softplus(-topk(critic(generator(z)))).mean(), fullgraph=True, backend=backend
    )
    seen, k = set(), 0
    for _ in range(EPOCHS):
        z, k = noise(), topk.k(BATCH)
        seen.add(k)
        found = gradient(step(z), generator, critic)
        expected = literal(generator, critic, z, k)
        assert (found - expected).norm() <= 1e-12 * expected.norm()
        topk.step()
        topk.end_epoch()
    assert unique_graphs() == 1
    report = topk.report()
    assert len(seen) > 20
    assert (report.steps, report.direction) == (EPOCHS, "high")
    assert report.rows == EPOCHS * BATCH
    assert report.dropped > EPOCHS * BATCH / 2


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attach_to_a_compiled_critic(backend, norm):
    """Un-detached fakes in the critic step, so that the gate must be the shielded one."""
    generator, critic = networks(norm)
    compiled = torch.compile(critic, fullgraph=True, backend=backend)
    topk = TopK(gamma=0.95, nu=0.01)
    of_generator = torch.optim.SGD(generator.parameters(), 0.1)
    of_critic = torch.optim.SGD(critic.parameters(), 0.1)
    with attach(compiled, topk):
        for _ in range(EPOCHS):
            gradient(softplus(compiled(generator(noise()))).mean(), generator, critic)
            of_critic.step()
            z = noise()
            expected = literal(generator, critic, z, topk.k(BATCH))
            found = gradient(softplus(-compiled(generator(z))).mean(), generator, critic)
            assert (found - expected).norm() <= 1e-12 * expected.norm()
            of_generator.step()
            topk.end_epoch()
    assert unique_graphs() == 1
    assert topk.steps == EPOCHS


@inductor
def test_a_critic_that_was_compiled_before_it_is_attached():
    """Its backward may overwrite what it saved, so a replay of the old graph would be garbage."""
    generator, critic = networks(norm=True)
    compiled = torch.compile(critic, backend="inductor")
    gradient(compiled(generator(noise())).mean(), generator, critic)
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    before = getattr(torch._functorch.config, "donated_buffer", None)
    with attach(compiled, topk):
        z = noise()
        expected = literal(generator, critic, z, BATCH // 2)
        critic_expected = _critic_gradient(generator, critic, z)
        found = gradient(softplus(-compiled(generator(z))).mean(), generator, critic)
        assert (found - expected).norm() <= 1e-12 * expected.norm()
        found_critic = torch.cat([p.grad.flatten() for p in critic.parameters()])
        assert (found_critic - critic_expected).norm() <= 1e-12 * critic_expected.norm()
    assert getattr(torch._functorch.config, "donated_buffer", None) is before


def _critic_gradient(generator, critic, z):
    return gradient(softplus(-critic(generator(z))).mean(), critic, generator)


def test_an_attached_critic_inside_a_compiled_step_breaks_the_graph_and_is_gated():
    generator, critic = networks(norm=False)
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    step = torch.compile(lambda z: softplus(-critic(generator(z))).mean(), backend="aot_eager")
    with attach(critic, topk):
        z = noise()
        found = gradient(step(z), generator, critic)
    expected = literal(generator, critic, z, BATCH // 2)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_an_attached_critic_inside_a_full_graph_is_an_error_not_a_silence():
    generator, critic = networks(norm=False)
    step = torch.compile(lambda z: critic(generator(z)).mean(), backend="eager", fullgraph=True)
    with (
        attach(critic, TopK(gamma=0.5, nu=0.5)),
        pytest.raises(Exception, match="Compile the critic by itself"),
    ):
        step(noise())


def test_checkpointing():
    """Non-reentrant checkpointing replays; reentrant cannot, and says what to do."""
    from torch.utils.checkpoint import checkpoint

    class Critic(nn.Module):
        def __init__(self, body, reentrant):
            super().__init__()
            self.body, self.reentrant = body, reentrant

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=self.reentrant)

    for reentrant in (False, True):
        generator, body = networks(norm=False)
        critic = Critic(body, reentrant)
        topk = TopK(gamma=0.5, nu=0.5)
        topk.end_epoch()
        with attach(critic, topk):
            z = noise()
            expected = literal(generator, body, z, BATCH // 2)
            loss = softplus(-critic(generator(z))).mean()
            if reentrant:
                with pytest.raises(GeneratorStepUnknown, match="generator_step"):
                    gradient(loss, generator, critic)
                with topk.generator_step():
                    loss = softplus(-critic(generator(z))).mean()
                    found = gradient(loss, generator, critic)
            else:
                found = gradient(loss, generator, critic)
            assert (found - expected).norm() <= 1e-12 * expected.norm()
