"""Scripted, traced, exported: an attached critic is to torch's readers of code what it was."""

import copy
import io
import math
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torches import needs_torch

from topk_plugin import TopK, attach

BATCH = 8


def make() -> nn.Module:
    """A critic whose ``forward`` needs its own globals and its closure."""

    def halved(scores: torch.Tensor):
        return scores * 0.5

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 1)

        def forward(self, x):
            return self.net(x)

    class Critic(Body):
        def forward(self, x):
            return halved(self.net(x)) + sqrt(4.0)

    return Critic()


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))


def x() -> torch.Tensor:
    return torch.linspace(-1, 1, BATCH * 8).reshape(BATCH, 8)


def z() -> torch.Tensor:
    return torch.linspace(-1, 1, BATCH * 4).reshape(BATCH, 4)


old_alias = torch.jit.script


def saved(module):
    """Written to a file and read again, as scripts do."""
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


READERS = {
    "script": lambda module, at: saved(torch.jit.script(module)),
    "script by an alias": lambda module, at: old_alias(module),
    "trace": lambda module, at: saved(torch.jit.trace(module, at)),
    "trace_module": lambda module, at: torch.jit.trace_module(module, {"forward": at}),
    "export, strict": lambda module, at: torch.export.export(module, (at,), strict=True).module(),
    "export": lambda module, at: torch.export.export(module, (at,), strict=False).module(),
    "FX": lambda module, at: torch.fx.symbolic_trace(module),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("trained", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(name, marks=needs_torch("2.5", "another export")) if "export" in name else name
        for name in READERS
    ],
)
def test_what_reads_a_critic_finds_what_was_written(reader, trained):
    """Scripting read the wrapper's globals, tracing met the gates: an error each."""
    torch.manual_seed(0)
    D, G, topk = make(), generator(), TopK(gamma=0.5, nu=0.5)
    read = READERS[reader]
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (G, D)]
    with attach(D, topk):
        topk.end_epoch()
        for _ in range(2 * trained):
            step(D, G, optimizers)
        assert torch.allclose(read(D, x())(x()), D(x()))
        assert torch.allclose(read(copy.deepcopy(D), x())(x()), D(x()))
        # ... behind the generator, where its calls would be gated
        assert torch.allclose(read(nn.Sequential(G, D), z())(z()), D(G(z())))
        counted = topk.steps
        step(D, G, optimizers)  # and it is gated as before
        assert topk.steps == counted + 1
        assert topk.report().dropped == topk.steps * BATCH // 2
    assert topk.steps == 2 * trained + 1


def step(D, G, optimizers) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    softplus(-D(G(z()))).mean().backward()
    optimizers[0].step()


def test_a_reader_that_fails_leaves_the_critic_attached():
    class Unscriptable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 1)

        def forward(self, *x):
            return self.net(x[0]) * math.fsum(float(v) for v in range(3))

    D, G, topk = Unscriptable(), generator(), TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    ours = None
    with attach(D, topk):
        ours = Unscriptable.forward
        with pytest.raises(Exception, match=r"[Ff]unction|support"):
            torch.jit.script(D)
        assert Unscriptable.forward is ours
        step(D, G, [torch.optim.SGD(G.parameters(), 0.1)])
        assert topk.report().dropped == BATCH // 2
    assert Unscriptable.forward is not ours
