"""attach() warns of a loss that couples rows, and leaves nothing behind after the first steps."""

import gc
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, Critic, backward, make_generator, noise
from torches import reads_shapes

from topk_plugin import TopK, attach
from topk_plugin.loop.coupling_probe import PROBED_STEPS, CouplingProbe

pytestmark = [pytest.mark.usefixtures("seeded"), reads_shapes]
MESSAGE = r"attach: the loss couples the rows of a batch \(StdBackward0\).* topk.gather\(scores"
ORIGINAL = inspect.unwrap(torch.autograd.backward)


@pytest.fixture(autouse=True)
def _nothing_is_left_by_other_tests(monkeypatch):
    monkeypatch.setattr(torch.autograd, "backward", ORIGINAL)


def steps(D, G, loss, n=1):
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    for _ in range(n):
        optimizer.zero_grad()
        loss(D(G(noise()))).backward()
        optimizer.step()


def silent(D, G, loss, n=1):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(D, G, loss, n)


def test_it_warns_once():
    """Before, nothing was said."""
    D, G, topk = Critic(), make_generator(), TopK()
    with attach(D, topk):
        with pytest.warns(UserWarning, match=MESSAGE):
            steps(D, G, lambda s: s.std() - s.mean())
        assert torch.autograd.backward is ORIGINAL
        silent(D, G, lambda s: s.std() - s.mean(), 4)
    with attach(D, topk):  # once more, by a loop that attaches for each epoch
        silent(D, G, lambda s: s.std() - s.mean(), 4)


def test_it_ends_after_the_first_steps():
    D, G, topk = Critic(), make_generator(), TopK()
    with attach(D, topk):
        for _ in range(PROBED_STEPS):
            assert torch.autograd.backward is not ORIGINAL
            silent(D, G, lambda s: -s.mean())
        assert torch.autograd.backward is ORIGINAL
        owners = [getattr(observer, "__self__", None) for observer in topk.observers]
        assert not any(isinstance(owner, CouplingProbe) for owner in owners)
        silent(D, G, lambda s: s.std(), 3)


def test_what_is_removed_early_leaves_nothing():
    topk = TopK()
    attach(Critic(), topk).remove()
    assert torch.autograd.backward is ORIGINAL
    assert topk.observers == []


def test_two_critics_warn_once():
    topk, G, critics = TopK(), make_generator(), [Critic(), Critic()]
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    with attach(critics[0], topk), attach(critics[1], topk):
        fake = G(noise())
        sum(D(fake).std() for D in critics).backward()
        with pytest.warns(UserWarning, match=MESSAGE) as caught:
            optimizer.step()
    assert len(caught) == 1
    assert torch.autograd.backward is ORIGINAL


def test_critic_steps_are_not_the_generators():
    """A critic's loss may couple what it likes, also of fakes that are not detached."""
    D, G, topk = Critic(), make_generator(), TopK()
    of_critic = torch.optim.SGD(D.parameters(), 0.1)
    with attach(D, topk):
        for _ in range(3):
            of_critic.zero_grad()
            D(G(noise())).std().backward()
            of_critic.step()
            silent(D, G, lambda s: F.softplus(-s).mean())


@pytest.mark.filterwarnings("ignore:attach")
def test_what_others_replaced_meanwhile_stays():
    D, G, topk, said = Critic(), make_generator(), TopK(), []
    probe = CouplingProbe(topk, said.append)
    probe.start()
    ours = torch.autograd.backward

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    torch.autograd.backward = theirs
    try:
        with attach(D, topk):
            steps(D, G, lambda s: s.std(), 2)
            probe.stop()
            assert said == ["StdBackward0"]
            steps(D, G, lambda s: s.std(), 2)  # ours only hands on now
            assert torch.autograd.backward is theirs
    finally:
        torch.autograd.backward = ORIGINAL
    assert said == ["StdBackward0"]


@pytest.mark.filterwarnings("ignore:attach")
def test_every_way_to_call_backward():
    D, G = Critic(), make_generator()
    for call in (
        lambda loss: loss.backward(),
        lambda loss: torch.autograd.backward(loss),
        lambda loss: torch.autograd.backward(tensors=[loss]),
        lambda loss: torch.autograd.backward((loss, loss * 2)),
        lambda loss: (loss * 65536).backward(retain_graph=True, inputs=list(G.parameters())),
        lambda loss: loss.backward(torch.ones_like(loss)),
        lambda loss: torch.autograd.backward([torch.autograd.graph.get_gradient_edge(loss)]),
    ):
        topk, said = TopK(), []
        probe = CouplingProbe(topk, said.append)
        probe.start()
        optimizer = torch.optim.SGD(G.parameters(), 0.1)
        with attach(D, topk):
            call(D(G(noise())).std())
            optimizer.step()
        assert said == ["StdBackward0"]
        assert topk.observers == []


def test_gradients_are_the_same_while_it_looks():
    D, G = Critic(), make_generator()
    z = noise(BATCH)
    (plain,) = backward(D(G(z)).std(), G)
    with attach(D, TopK()):
        (found,) = backward(D(G(z)).std(), G)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_what_is_attached_and_forgotten_leaves_nothing():
    attach(Critic(), TopK())
    assert torch.autograd.backward is not ORIGINAL
    gc.collect()
    assert torch.autograd.backward is ORIGINAL
