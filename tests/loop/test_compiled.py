"""torch.compile of a critic that is attached: gated as a whole, and put back as it was."""

import copy
import pickle
import threading

import pytest
import torch
import torch._dynamo.utils
from torch import nn
from torch.nn.functional import softplus
from torches import compiles, needs_torch, twice

from topk_plugin import TopK, attach
from topk_plugin.loop.traced import refusal

BATCH = 16
pytestmark = compiles


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x)


def networks():
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    return generator.double(), Critic().double()


def noise():
    return torch.randn(BATCH, 4, dtype=torch.float64)


def gradient(loss, generator):
    generator.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in generator.parameters()])


def unique_graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def wrapped(critic, backend):
    return torch.compile(critic, fullgraph=True, backend=backend)


def in_place(critic, backend):
    critic.compile(fullgraph=True, backend=backend)
    return critic


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("compiled", [wrapped, in_place])
@pytest.mark.parametrize("before", [False, True], ids=["after attach", "before attach"])
def test_one_graph_for_every_k_and_the_literal_gradient(before, compiled, backend):
    generator, critic = networks()
    topk = TopK(gamma=0.8, nu=0.1)
    fast = compiled(critic, backend) if before else None
    with attach(fast if before else critic, topk):
        fast = fast if before else compiled(critic, backend)
        of_generator = torch.optim.SGD(generator.parameters(), 0.1)
        of_critic = torch.optim.SGD(critic.parameters(), 0.1)
        for _ in range(8):
            # fakes that are not detached, so that the gate must be the shielded one
            critic.zero_grad()
            softplus(fast(generator(noise()))).mean().backward()
            of_critic.step()
            z = noise()
            plain = copy.deepcopy(critic)
            kept = plain(generator(z)).flatten().topk(topk.k(BATCH)).values
            expected = gradient(softplus(-kept).mean(), generator)
            found = gradient(softplus(-fast(generator(z))).mean(), generator)
            assert (found - expected).norm() <= 1e-12 * expected.norm()
            of_generator.step()
            topk.end_epoch()
        assert unique_graphs() == 1
        assert topk.steps == 8


@pytest.mark.parametrize("compiled", [wrapped, in_place])
def test_remove_puts_back_what_was_compiled(compiled):
    generator, critic = networks()
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    forward, attachment = Critic.forward, attach(critic, topk)
    fast = compiled(critic, "eager")
    gradient(softplus(-fast(generator(noise()))).mean(), generator)
    assert len(topk.ledger.pending) == 1
    attachment.remove()
    topk.ledger.pending.clear()
    assert Critic.forward is forward
    owner = vars(fast)
    own = owner["forward"] if fast is not critic else owner["_compiled_call_impl"]
    assert "topk_plugin" not in type(own).__module__
    gradient(softplus(-fast(generator(noise()))).mean(), generator)
    assert not topk.ledger.pending
    another = compiled(critic, "eager")  # and nothing more is gated
    gradient(softplus(-another(generator(noise()))).mean(), generator)
    assert not topk.ledger.pending


@pytest.mark.parametrize(
    "ways",
    [
        [wrapped],
        [in_place],
        pytest.param([in_place, wrapped], marks=twice),
    ],
    ids=["wrapped", "in place", "both"],
)
def test_copies_of_what_was_compiled_are_not_gated(ways):
    generator, critic = networks()
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    with attach(critic, topk):
        for compiled in ways:
            fast = compiled(critic, "eager")
        fast(generator(noise()))
        for copied in (copy.deepcopy(critic), copy.deepcopy(fast)):
            gradient(copied(generator(noise())).mean(), generator)
        copied = pickle.loads(pickle.dumps(critic))
        gradient(copied(generator(noise())).mean(), generator)
        assert not topk.ledger.pending
        gradient(fast(generator(noise())).mean(), generator)
        assert len(topk.ledger.pending) == 1


def test_paused_calls_and_calls_without_a_gradient_are_whole_graphs():
    generator, critic = networks()
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    with attach(critic, topk):
        fast = torch.compile(critic, fullgraph=True, backend="eager")
        step = torch.compile(lambda x: critic(x).mean(), fullgraph=True, backend="eager")
        with topk.paused():
            gradient(fast(generator(noise())).mean(), generator)
        with torch.no_grad():
            step(generator(noise()))
            fast(generator(noise()))
        step(generator(noise()).detach())
        assert not topk.ledger.pending
        with pytest.raises(Exception, match="Compile the critic by itself") as raised:
            step(generator(noise()))
        assert "D.compile(fullgraph=True)" in str(refusal(raised.value))
        assert refusal(ValueError("another")) is None


@needs_torch("2.5", "what is traced does not know its thread before")
def test_a_thread_in_a_compiled_critic_does_not_lend_its_graph_to_another():
    """Inside, the call is traced as it was written; a step elsewhere has its gate all the same."""
    generator, critic = networks()
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    step = torch.compile(lambda x: critic(x).mean(), backend="eager")

    class Outer(nn.Module):
        def forward(self, x):
            score = step(x)  # compiled inside an attached critic: part of it
            thread = threading.Thread(target=lambda: gradient(step(generator(noise())), generator))
            thread.start()
            thread.join()
            return critic(x) + 0 * score

    outer = Outer()
    outer.critic = critic
    with attach(critic, topk), attach(outer, topk):
        outer(generator(noise()))
        assert len(topk.ledger.pending) == 1


def test_a_critic_under_ddp(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        generator, critic = networks()
        topk = TopK(gamma=0.5, nu=0.5)
        topk.end_epoch()
        with attach(critic, topk):
            parallel = nn.parallel.DistributedDataParallel(critic)
            fast = torch.compile(parallel, backend="aot_eager")
            z = noise()
            kept = copy.deepcopy(critic)(generator(z)).flatten().topk(BATCH // 2).values
            expected = gradient(softplus(-kept).mean(), generator)
            found = gradient(softplus(-fast(generator(z))).mean(), generator)
            assert (found - expected).norm() <= 1e-12 * expected.norm()
            assert len(topk.ledger.pending) == 1
    finally:
        torch.distributed.destroy_process_group()
