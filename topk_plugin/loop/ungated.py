"""Critics in the generator's loss that are not gated: found in its first steps, and named.

A module that is not attached counts as one if it was given the generator's samples, returned
something shaped like scores, got a gradient there in the generator's own backward, and is trained,
though not by that gradient. Frozen networks (perceptual losses), those that learn along with the
generator (decoders, estimates of mutual information), feature maps and images are none.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topk_plugin.core.graph import leaves_of
from topk_plugin.core.ranking import resembles_score, rows_scored
from topk_plugin.core.trees import tree_leaves
from topk_plugin.loop.critic_step import reached_of
from topk_plugin.loop.wrappers import unwrapped
from topk_plugin.topk import TopK

STEPS = 3
"""Generator steps in which they are looked for."""

REMEMBERED = 1000
"""Calls that are remembered: more come only where the generator no longer steps."""


class Scored:
    """A call of a module that may be a critic.

    Args:
        score: what it returned.
    """

    def __init__(self, module: nn.Module, score: Tensor) -> None:
        self.module, self.shape = weakref.ref(module), tuple(score.shape)
        self.upstream = frozenset(map(id, leaves_of([score])))
        self.tasks: set[int] = set()  # backward passes that reached it
        self.left = False  # the gradient that they left in the module's parameters is still there
        self.learned = False  # an optimizer stepped the module on it

    def is_of(self, owned: Set[int]) -> bool:
        """Whether ``owned`` are parameters of the module, by id, among others."""
        module = self.module()
        return module is not None and any(id(p) in owned for p in module.parameters())


class Ungated:
    """Looks for them in the first generator steps of ``topk``.

    Args:
        attached: gives the critics that are gated.
        tell: told of those that are not, when the looking ends.
    """

    def __init__(
        self, topk: TopK, attached: Callable[[], Iterable[nn.Module]], tell: Callable[[str], None]
    ) -> None:
        self.topk, self._attached, self._tell = topk, attached, tell
        self._left = STEPS
        # reached by a backward, and no optimizer stepped since; or not the generator's
        self._live: deque[Scored] = deque(maxlen=REMEMBERED)
        self._aside: deque[Scored] = deque(maxlen=REMEMBERED)
        self._gated: set[int] = set()  # backward passes that went through a gate
        self._found: dict[weakref.ref[nn.Module], list[Scored]] = {}  # in steps that were counted

    @property
    def goes_on(self) -> bool:
        """They are still looked for."""
        return self._left > 0

    def returned(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """``module(*arguments)`` gave ``output``."""
        scores = _scores(arguments, output) if torch.is_grad_enabled() else []
        generator = self.topk.training.parameters
        ids = {id(p) for p in module.parameters()} if scores else set()
        if not ids or not generator.isdisjoint(ids):
            return
        gated = {id(p) for critic in self._attached() for p in critic.parameters()}
        for score in scores:
            scored = Scored(module, score)
            # what reads a gated critic's features is its head, or a regression on them
            if not generator.isdisjoint(scored.upstream) and gated.isdisjoint(scored.upstream):
                score.register_hook(partial(self._pulled, scored))

    def _pulled(self, scored: Scored, gradient: Tensor | None) -> None:
        module = scored.module()
        # grad mode is on inside a backward with create_graph
        if gradient is None or module is None or torch.is_grad_enabled():
            return
        scored.tasks.add(torch._C._current_graph_task_id())
        scored.left = reached_of(module.parameters()) is not None
        self._live.append(scored)

    def gate_pulled(self, gradient: Tensor | None) -> None:
        """The running backward goes through a gate, and this is what reached it."""
        if gradient is not None:
            self._gated.add(torch._C._current_graph_task_id())

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An outermost optimizer step ended that was not the generator's."""
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for scored in self._all():
            if scored.is_of(owned):
                scored.learned |= scored.left
                scored.left = False
        for scored in [scored for scored in self._live if scored.is_of(owned)]:
            self._live.remove(scored)
            self._aside.append(scored)

    def zeroed(self, parameters: set[int]) -> None:
        """Gradients of ``parameters``, by id, were set to zero."""
        for scored in self._all():
            scored.left = scored.left and not scored.is_of(parameters)

    def _all(self) -> list[Scored]:
        return [*self._live, *self._aside, *(one for many in self._found.values() for one in many)]

    def step_counted(self) -> None:
        """A generator step was counted."""
        if not self.goes_on:
            return
        # both losses may be backwarded before either optimizer steps
        same = [scored for scored in self._aside if scored.tasks & self._gated]
        for scored in (*self._live, *same):
            self._found.setdefault(scored.module, []).append(scored)
        self.clear()
        self._left -= 1
        if not self._left:
            self._name()
            self._found.clear()

    def clear(self) -> None:
        """Forget what is under way."""
        self._live.clear()
        self._aside.clear()
        self._gated.clear()

    def _name(self) -> None:
        """Say which of those that were found are critics."""
        attached = list(self._attached())
        parts = {id(part) for critic in attached for part in critic.modules()}
        wholes = {id(critic) for critic in attached}
        generators = set[int]().union(*(t.parameters for t in self.topk.trainings.all))
        found = [
            (module, calls[0].shape)
            for reference, calls in self._found.items()
            if (module := reference()) is not None
            and not any(scored.learned for scored in calls)
            and id(module) not in parts
            and not any(id(part) in wholes for part in module.modules())
            and generators.isdisjoint(map(id, module.parameters()))
            and any(
                p.requires_grad or id(p) in self.topk.ledger.optimized for p in module.parameters()
            )
        ]
        inner = {id(part) for module, _ in found for part in list(module.modules())[1:]}
        outermost = {_path(module): shape for module, shape in found if id(module) not in inner}
        if outermost:
            self._tell(_message(outermost))


def _message(found: dict[str, tuple[int, ...]]) -> str:
    scores = ", ".join(f"{path} {shape}" for path, shape in found.items())
    own = [path for path in found if not path.startswith("torch.")]
    name = "".join(f" --critic {path}" for path in own)
    remedy = f"gate it too:{name} beside the present one, or attach it"
    if not own:
        remedy = "gate it too: attach it, or give it a class of its own that --critic can name"
    return f"not gated, though the generator's loss reads its scores: {scores}; {remedy}"


def _path(module: nn.Module) -> str:
    *_, inner = unwrapped(module)
    return f"{type(inner).__module__}:{type(inner).__qualname__}"


def _scores(arguments: Any, output: Any) -> list[Tensor]:
    """What a module returned that is shaped like scores, and no image as it was given one."""
    shapes = [a.shape for a in tree_leaves(arguments) if isinstance(a, Tensor) and a.dim()]
    return [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor)
        and leaf.grad_fn is not None
        and leaf.dim()
        and resembles_score(leaf, rows_scored(output, shapes[0][0]) if shapes else len(leaf))
        and (leaf.numel() == len(leaf) or leaf.shape not in shapes)
    ]
