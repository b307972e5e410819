"""How many tensor operations a generator step runs, and how many of them are top-k's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from losses import BATCH, Critic, TwoOutputs, make_generator, make_topk, noise
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

from topk_plugin import TopK, attach
from topk_plugin.core import line as line_module

# what only looks at memory that is there, or asks for some: neither runs anything on a device
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute",
    "reshape", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze",
    "view", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts the operations that run while it is entered, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


Around = Callable[[], AbstractContextManager[None]]


def loss_of(way: str, D: nn.Module, fake: Tensor, topk: TopK | None) -> Tensor:
    """The generator's loss; without a ``topk`` what the loop would do of its own.

    Args:
        way: see :func:`added`.
        fake: (B, WIDTH).
    """
    if way == "gather":
        scores = D(fake)
        return softplus(-(topk.gather(scores) if topk else scores[torch.arange(4)])).mean()
    by_hand = topk is not None and way in ("line", "companion", "follow")
    output = topk(D(fake)) if by_hand else D(fake)
    if not isinstance(D, TwoOutputs):
        return softplus(-output).mean()
    score, q = output["score"], output["q"]
    if way == "follow":
        again = D(fake + 0.1)
        q = (topk.follow(again) if topk else again)["q"]
    return softplus(-score).mean() + q.pow(2).mean()


def _steps(way: str, norm: str, warm: int, steps: int, topk: TopK | None) -> Counter[str]:
    """The operations of ``steps`` generator steps, after ``warm`` that are not counted."""
    torch.manual_seed(0)
    several = "companion" in way or way == "follow"
    G, D = make_generator(), TwoOutputs(norm, dict) if several else Critic(norm)
    optimizer = torch.optim.SGD(G.parameters(), 0.01)
    marked = topk is not None and way.startswith("marked")
    around: Around = topk.generator_step if marked else nullcontext

    def step(way: str) -> None:
        G.zero_grad()
        D.zero_grad()
        with around():
            loss_of(way, D, G(noise()), topk).backward()
        optimizer.step()

    with ExitStack() as stack:
        if topk is not None and way.startswith(("marked", "shielded")):
            stack.enter_context(attach(D, topk))
        # nothing follows, and nothing is gathered, before a loss was seen
        step({"follow": "companion", "gather": "line"}.get(way, way))
        operations = Operations()
        for n in range(1, warm + steps):
            with operations if n >= warm else nullcontext():
                step(way)  # all of them from one place
    return operations.counts


def added(
    way: str, norm: str = "plain", warm: int = 3, steps: int = 1, **settings: Any
) -> tuple[float, Counter[str]]:
    """Operations that top-k adds to a generator step, k = B/2; and all of its own by name.

    Args:
        way: "line", "marked" (attached, inside ``generator_step()``), or "shielded" (attached);
            "companion" and "marked companion": the loss reads an output beside the scores, too;
            "follow": one of another call of the critic; "gather".
        norm: of the critic, see losses.NORMS.
        warm: steps before; the direction is voted on by the first hundred.
        steps: that are averaged over.
        settings: of the TopK.
    """
    topk = make_topk(4, **settings)
    found = _steps(way, norm, warm, steps, topk)
    assert topk.report().dropped == 4 * (warm + steps), "the gate did not run"
    plain = _steps(way, norm, warm, steps, None)
    mine = found - plain
    return (found.total() - plain.total()) / steps, mine


@contextmanager
def capturing() -> Iterator[None]:
    """What gates do while a CUDA graph is captured, without a device."""
    real = line_module.is_capturing
    line_module.is_capturing = lambda tensor: True
    try:
        yield
    finally:
        line_module.is_capturing = real


def in_a_graph(gated: bool, **settings: Any) -> Counter[str]:
    """Operations by name of a compiled generator step, forward and backward.

    Args:
        gated: by ``topk(scores)``, k = B/2.
        settings: of the TopK.
    """
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    counts: Counter[str] = Counter()

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            schema = getattr(node.target, "_schema", None)
            name = schema.name.split("::")[1] if schema else ""
            if name and name not in FREE:
                counts[name] += 1
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    topk = make_topk(4, **settings)
    G, D = make_generator(), Critic("plain")
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)

    @torch.compile(fullgraph=True, backend=backend)
    def loss(z: Tensor) -> Tensor:
        scores = D(G(z))
        return softplus(-(topk(scores) if gated else scores)).mean()

    loss(noise()).backward()
    topk.step()
    assert topk.report().dropped == (BATCH // 2 if gated else 0)
    return counts
