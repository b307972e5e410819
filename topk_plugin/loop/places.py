"""Places of a loop that call the critic for the generator alone: there the critic is spared.

A place is a call stack. Most loops throw away what their generator step leaves in the critic: the
critic's ``zero_grad()`` comes before its optimizer. Where that was seen in LEARNED generator steps
from one place, and nothing else ever, the critic's parameters are frozen in the calls from there:
the critic forms no gradient of its own, and the score gate does for the generator, to the bit, what
the shielded gate did by running the critic's backward once more. Only critics whose rows act on
each other need that, see :mod:`topk_plugin.loop.row_probe`, so only with them anything is learned.

That the gradient is used is seen where an optimizer that owns a part of the critic is about to
step, and where anybody reads ``.grad`` of one of its parameters: clipping over both networks, a
scaler, an optimizer written by hand, a norm that is logged. Before a place is learned it is then
never learned; afterwards it is an error, before any weight or any state of an optimizer changed.
A place that failed is written into the checkpoint's record, and not trusted again. What cannot be
seen is a gradient that was taken from ``.grad`` before and kept, or read by C++.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.optim import Optimizer

from topk_plugin.compat import is_probe, node_of
from topk_plugin.core.graph import executes, is_capturing
from topk_plugin.core.optimizers import before_step
from topk_plugin.core.parameters import GRADIENT, Owned, owned_by
from topk_plugin.core.training import Training
from topk_plugin.core.trees import tree_leaves
from topk_plugin.errors import GeneratorStepUnknown
from topk_plugin.loop.frozen import checkpointed, learners
from topk_plugin.loop.gradients import watch_gradients
from topk_plugin.loop.plan import Plan
from topk_plugin.loop.traced import something_is_compiled
from topk_plugin.topk import TopK

LEARNED = 20
"""Generator steps after which a place is trusted."""

FRAMES = 100
"""Of a stack, at most: what differs below is one place, which is then learned less readily."""

REMEMBERED = 1000
"""Places of one critic: more come only of stacks that do not recur, and are not learned."""

Stack = tuple[int, ...]


_MODULES = vars(torch.nn.modules.module)


def stack_of(frame: FrameType | None) -> Stack:
    """The code that runs and its line, in ``frame`` and those that called it."""
    found: list[int] = []
    while frame is not None and len(found) < 2 * FRAMES:
        if frame.f_globals is not _MODULES:  # its lines depend on hooks that come and go
            found += (id(frame.f_code), frame.f_lineno)
        frame = frame.f_back
    return tuple(found)


def loops_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost one, of ``frame`` and those that called it, that runs code of the loop."""
    while frame is not None and _package(frame) in _NOT_THE_LOOPS:
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".")[0]


_NOT_THE_LOOPS = ("topk_plugin", "torch")


class Place:
    """One call stack, and what became of the gradients that its calls left in the critic.

    Args:
        frame: the innermost one that runs code of the loop.
        distrusted: names of places that are never trusted; may grow.
    """

    def __init__(self, frame: FrameType, distrusted: list[str]) -> None:
        lines, launched = list[str](), False
        self.codes: list[CodeType] = []  # kept alive: another code may get the id of one
        inner: FrameType | None = frame
        while inner is not None and len(self.codes) < FRAMES:
            self.codes.append(inner.f_code)
            module = str(inner.f_globals.get("__name__", ""))
            launched |= module.startswith("topk_plugin.run.")  # what stands below runs the loop
            if not launched and _package(inner) not in _NOT_THE_LOOPS:
                name = PurePath(inner.f_code.co_filename).name
                lines.append(f"{name}:{inner.f_lineno} {inner.f_code.co_name}")
            inner = inner.f_back
        # the same in another process, and on another machine
        self.name = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        self.title = lines[0].split(" ")[0]
        self._distrusted = distrusted
        self.coupled = False  # rows acted on each other in the latest call that could show it
        self.learned = 0  # generator steps
        self._waiting = 0  # ... of which the gradient still lies in the critic
        self._latest: object = None  # the step that was counted last
        # since the critic's gradients were zeroed: whether a backward came, and was spared
        self.reached = self.spared = False
        self.left: frozenset[int] = frozenset()  # parameters, by id, not yet zeroed
        self._owned: Owned | None = None

    @property
    def is_distrusted(self) -> bool:
        """It failed once, perhaps in an earlier run."""
        return self.name in self._distrusted

    @property
    def is_learned(self) -> bool:
        """Its calls may be spared."""
        return self.learned >= LEARNED and not self.is_distrusted

    def called(self, owned: Owned, ids: frozenset[int], spared: bool) -> None:
        """A call from here; ``ids`` are parameters, of those ``owned``, that get its gradient."""
        self.left, self._owned = ids, owned
        self.spared |= spared
        _open[self] = None

    def arrived(self, owned: Owned, ids: frozenset[int], spared: bool) -> None:
        """The backward of such a call."""
        self.called(owned, ids, spared)
        self.reached = True

    def counted(self, step: object) -> None:
        """It was a generator ``step``."""
        if step == self._latest:
            return  # another call of it
        self._latest = step
        if self.reached:
            self._waiting += 1
        else:
            self.learned += 1

    def thrown_away(self, gone: Iterable[int]) -> None:
        """The gradients of parameters, by id, are gone."""
        self.left -= frozenset(gone)
        if not self.left:
            self.learned += self._waiting
            self.close()

    def close(self) -> None:
        """Nothing of its calls lies in the critic any more."""
        self._waiting, self.reached, self.spared, self.left = 0, False, False, frozenset()
        _open.pop(self, None)

    @property
    def is_alive(self) -> bool:
        """Else other parameters may have the ids of those that got its gradient."""
        return self._owned is not None and self._owned.alive

    def distrust(self) -> None:
        """Its calls are never spared, from now on."""
        if not self.is_distrusted:
            self._distrusted.append(self.name)
        self.close()

    def used(self, how: str) -> None:
        """Somebody uses what its calls left in the critic, or should have.

        Raises:
            GeneratorStepUnknown: they were spared.
        """
        spared = self.spared
        self.distrust()
        if spared:
            raise GeneratorStepUnknown(
                f"the critic's gradient of a generator step is used: {how}, and since the critic's "
                f"zero_grad() came a call from {self.title}, of which the critic formed no "
                f"gradient, since {self.learned} generator steps from there had thrown it away "
                "unread. Nothing was changed yet. Let the critic form it in each step: "
                "--no-spare, TopK(spare=False); or go on from a checkpoint that is written after "
                "this, in which the place is no longer trusted."
            )


_open: dict[Place, None] = {}
"""Those of which a gradient lies in a critic, or would without sparing, in the order of calls."""


# --- what is watched while anything is learned ----------------------------------------------------


class _Uses:
    """Tells the places that are open who reads or replaces a gradient, or is about to step."""

    def read(self, parameter: Tensor) -> None:
        for place in list(_open):
            if place.reached and id(parameter) in place.left and place.is_alive:
                place.used("its .grad is read")

    def replaced(self, parameter: Tensor) -> None:
        self.zeroed({id(parameter)})

    def zeroed(self, gone: set[int]) -> None:
        for place in list(_open):
            if not place.left.isdisjoint(gone):
                place.thrown_away(gone)

    def stepping(self, optimizer: Optimizer) -> None:
        if not _open:
            return
        owned = owned_by(optimizer).ids
        used = [place for place in _open if not place.left.isdisjoint(owned) and place.is_alive]
        for place in sorted(used, key=lambda place: place.spared):  # the last ones may raise
            place.used(f"{type(optimizer).__name__} is about to step it")


_uses = _Uses()


class Places:
    """Those from which one critic is called.

    Args:
        critic: it, with what wraps it.
    """

    def __init__(self, topk: TopK, critic: nn.Module) -> None:
        config = topk.config
        self.topk = topk
        self._is_on = config.spare and config.gate == "auto"
        # whose copies on other devices or ranks are told to exchange gradients
        self._is_on &= not isinstance(critic, nn.DataParallel | nn.parallel.DistributedDataParallel)
        self._falls = config.gamma < 1 and config.nu < 1
        self._apart = False  # rows were in the latest call that could show it
        self._known: dict[Stack, Place] = {}
        self._watches, self._undo = False, ExitStack()

    def visit(self, plan: Plan, owned: Owned, leaves: Sequence[Any]) -> Visit | None:
        """A call of the critic that is going to be gated; None: it is no matter of its place.

        Args:
            owned: the critic's parameters.
            leaves: of the arguments.
        """
        if not self._is_on or plan.known or plan.frozen or plan.unshielded or self._apart:
            return None
        if plan.mode == "observe" and not self._falls:
            return None
        if not self._is_possible(plan, leaves):
            return None
        mine = learners(owned)
        if not mine or not all(_is_plain(parameter) for parameter in mine):
            return None
        frame = loops_frame(sys._getframe(1))
        place = None if frame is None else self._place(frame)
        if place is None or place.is_distrusted:
            return None
        self._watch()
        spared = place.is_learned and place.coupled and plan.mode == "shielded" and not plan.audit
        return Visit(place, owned, mine, spared)

    def _is_possible(self, plan: Plan, leaves: Sequence[Any]) -> bool:
        """Whether the loop is of a kind in which anything could be learned."""
        if self.topk.ledger.explicit:  # its other calls are the critic's
            return False
        # gradients are exchanged, also where the critic is not called through what does that
        if distributed.is_available() and distributed.is_initialized():
            return False
        if something_is_compiled():  # it would be compiled anew for frozen parameters
            return False
        # of an embedding that only the critic learns the gradient is to stay whole
        return not is_capturing(leaves[plan.places[0]]) and not any(
            isinstance(leaf, Tensor) and leaf.requires_grad and number not in plan.places
            for number, leaf in enumerate(leaves)
        )

    def _place(self, frame: FrameType) -> Place | None:
        stack = stack_of(frame)
        place = self._known.get(stack)
        if place is None and len(self._known) < REMEMBERED:
            place = self._known[stack] = Place(frame, self.topk.distrusted)
        return place

    def seen(self, visit: Visit | None, apart: Sequence[bool | None]) -> None:
        """What a shielded call knows of the rows of each of its inputs."""
        self._apart = bool(apart) and all(apart)
        if visit is not None and apart:
            visit.place.coupled = False in apart
        if self._apart and not any(place.spared for place in self._known.values()):
            self.stop()

    def _watch(self) -> None:
        if not self._watches:
            zeroed = self.topk.ledger.after_zeroing
            zeroed.append(_uses.zeroed)
            before_step.append(_uses.stepping)
            self._undo.callback(zeroed.remove, _uses.zeroed)
            self._undo.callback(before_step.remove, _uses.stepping)
            self._undo.callback(watch_gradients(_uses))
            self._watches = True

    def stop(self) -> None:
        """Watch nothing any more; twice is fine."""
        self._undo.close()
        self._watches = False
        for place in self._known.values():
            place.close()


class Visit:
    """One call from a place.

    Args:
        learners: the critic's parameters that get a gradient.
        spared: they are frozen in it.
    """

    def __init__(self, place: Place, owned: Owned, learners: list[Tensor], spared: bool) -> None:
        self.place, self.spared, self.learners = place, spared, learners
        self.ids = frozenset(map(id, learners))
        self._owned, self._checkpointed = owned, checkpointed()

    def returned(self, output: Any, sources: Sequence[Node]) -> None:
        """The critic gave ``output`` for what ``sources`` made."""
        self.place.called(self._owned, self.ids, self.spared)
        if self.place.is_learned:
            return
        # what else it learns from is not frozen, and is to keep its gradient; and each time that
        # checkpointing runs BatchNorm again, which is less often then, its statistics change
        apart = not self._owned.ids.issuperset(_leaves(output, sources))
        if apart or checkpointed() > self._checkpointed:
            self.place.distrust()

    def arrived(self) -> None:
        """The running backward goes through it."""
        self.place.arrived(self._owned, self.ids, self.spared)
        if not self.place.is_learned and not self.place.is_distrusted:
            found = [p for p in self.learners if executes(node_of(p))]
            before = [(GRADIENT.__get__(p), p) for p in found]
            marks = [(p, g, 0 if g is None else g._version) for g, p in before]
            Variable._execution_engine.queue_callback(lambda: self._ended(marks))

    def _ended(self, marks: Sequence[tuple[Tensor, Tensor | None, int]]) -> None:
        for parameter, before, version in marks:
            now = GRADIENT.__get__(parameter)
            if now is before and (now is None or now._version == version):
                self.place.distrust()  # autograd.grad() gave it to somebody

    def counted(self, training: Training) -> None:
        """It was one of a generator step."""
        step = training.number, training.progress.steps
        self.place.counted(step)
        if self.spared:
            training.counts.spare(step)


def _is_plain(parameter: Tensor) -> bool:
    """Whether all that happens to its gradient is seen."""
    return (
        issubclass(type(parameter), nn.Parameter)
        and not parameter._backward_hooks
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def _leaves(output: Any, sources: Sequence[Node]) -> set[int]:
    """Ids of the leaves from which ``output`` was computed, not through ``sources``."""
    tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    queue = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen, found = {*sources, *queue}, set[int]()
    while queue:
        node = queue.pop()
        if isinstance(node, torch._C._functions.AccumulateGrad):
            if not is_probe(node.variable):
                found.add(id(node.variable))
            continue
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return found
