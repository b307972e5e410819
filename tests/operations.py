"""How many tensor operations a generator step runs, and how many of them are top-k's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from losses import Critic, make_generator, make_topk, noise
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

from topk_plugin import TopK, attach

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


Line = Callable[[torch.Tensor], torch.Tensor]
Around = Callable[[], AbstractContextManager[None]]


def _steps(way: str, norm: str, warm: int, steps: int, topk: TopK) -> Counter[str]:
    """The operations of ``steps`` generator steps, after ``warm`` that are not counted."""
    torch.manual_seed(0)
    G, D = make_generator(), Critic(norm)
    optimizer = torch.optim.SGD(G.parameters(), 0.01)
    line: Line = topk if way == "line" else lambda scores: scores
    around: Around = topk.generator_step if way == "marked" else nullcontext

    def step() -> None:
        G.zero_grad()
        D.zero_grad()
        with around():
            softplus(-line(D(G(noise())))).mean().backward()
        optimizer.step()

    with ExitStack() as stack:
        if way in ("marked", "shielded"):
            stack.enter_context(attach(D, topk))
        operations = Operations()
        for n in range(warm + steps):
            with operations if n >= warm else nullcontext():
                step()  # all of them from one place
    return operations.counts


def added(
    way: str, norm: str = "plain", warm: int = 3, steps: int = 1, **settings: Any
) -> tuple[float, Counter[str]]:
    """Operations that top-k adds to a generator step, k = B/2; and all of its own by name.

    Args:
        way: "line", "marked" (attached, inside ``generator_step()``), or "shielded" (attached).
        norm: of the critic, see losses.NORMS.
        warm: steps before; the direction is voted on by the first hundred.
        steps: that are averaged over.
        settings: of the TopK.
    """
    topk = make_topk(4, **settings)
    found = _steps(way, norm, warm, steps, topk)
    assert topk.report().dropped == 4 * (warm + steps), "the gate did not run"
    plain = _steps("nothing", norm, warm, steps, make_topk(4))
    mine = found - plain
    return (found.total() - plain.total()) / steps, mine
