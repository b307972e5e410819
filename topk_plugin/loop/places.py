"""Places of a loop that call the critic for the generator alone: there the critic is spared.

A place is a call stack. Most loops throw away what their generator step leaves in the critic: the
critic's ``zero_grad()`` comes before its optimizer. Where that was seen in LEARNED generator steps
from one place, and nothing else ever, the critic's parameters are frozen in the calls from there:
the critic forms no gradient of its own, and the score gate does for the generator, to the bit, what
the shielded gate did by running the critic's backward once more. Only critics whose rows act on
each other need that, see :mod:`topk_plugin.loop.row_probe`, so only with them anything is learned.

That the gradient is used is seen where an optimizer that owns a part of the critic is about to
step, where anybody reads ``.grad`` of one of its parameters (clipping over both networks, a scaler,
an optimizer written by hand, a norm that is logged), and where ``autograd.grad`` or
``backward(inputs=...)`` is asked for it. Before a place is learned it is then never learned;
afterwards it is an error, before any weight or any state of an optimizer changed. A place that
failed is written into the checkpoint's record, and not trusted again. What cannot be seen is a
gradient that was taken from ``.grad`` before and kept, or read by C++.

Autocast keeps 16-bit copies of parameters that get a gradient until its outermost block ends, also
past their optimizer's step, and a critic that is spared is called past them. A loop whose optimizer
steps the critic inside such a block would see other bits, so nothing is spared there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.optim import Optimizer

from topk_plugin.compat import is_probe, node_of
from topk_plugin.core.graph import behind, executes, is_capturing
from topk_plugin.core.optimizers import before_step
from topk_plugin.core.parameters import GRADIENT, Owned, owned_by
from topk_plugin.core.training import Training
from topk_plugin.core.trees import tree_leaves
from topk_plugin.loop.frozen import checkpointed, learners
from topk_plugin.loop.gradients import watch_asking, watch_gradients
from topk_plugin.loop.place import Place, Stack, loops_frame, stack_of
from topk_plugin.loop.plan import Plan
from topk_plugin.loop.traced import something_is_compiled
from topk_plugin.loop.uses import uses
from topk_plugin.topk import TopK

REMEMBERED = 1000
"""Places of one critic: more come only of stacks that do not recur, and are not learned."""


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
        self._owned: Owned | None = None  # the critic's parameters
        self._known: dict[Stack, Place] = {}
        self._watches = self._spares = False
        self._undo = ExitStack()

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
        self._owned = owned
        self._watch()
        spared = place.is_learned and place.coupled and plan.mode == "shielded" and not plan.audit
        if spared and not self._spares:
            self._undo.callback(watch_asking(uses.asked))
            self._spares = True
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
        if self._apart:
            self._rest()

    def _stepping(self, optimizer: Optimizer) -> None:
        if not _in_autocast() or self._owned is None:
            return
        if not self._owned.ids.isdisjoint(owned_by(optimizer).ids):
            self._is_on = False
            self._rest()

    def _rest(self) -> None:
        """Watch nothing any more, unless a gradient is missing."""
        if not any(place.spared for place in self._known.values()):
            self.stop()

    def _watch(self) -> None:
        if not self._watches:
            zeroed = self.topk.ledger.after_zeroing
            zeroed.append(uses.zeroed)
            before_step.append(uses.stepping)
            before_step.append(self._stepping)
            self._undo.callback(zeroed.remove, uses.zeroed)
            self._undo.callback(before_step.remove, uses.stepping)
            self._undo.callback(before_step.remove, self._stepping)
            self._undo.callback(watch_gradients(uses))
            self._watches = True

    def stop(self) -> None:
        """Watch nothing any more; twice is fine."""
        self._undo.close()
        self._watches = self._spares = False
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
        tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        made: set[Any] = {tensor.grad_fn for tensor in tensors}.difference([None], sources)
        if self.spared:
            uses.spared(self.place, self._owned, self.learners, made)
        if self.place.is_learned:
            return
        # what else it learns from is not frozen, and is to keep its gradient; and each time that
        # checkpointing runs BatchNorm again, which is less often then, its statistics change
        apart = not self._owned.ids.issuperset(_leaves(made, sources))
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


def _in_autocast() -> bool:
    """Whether a block of autocast is open, be it one in which it is disabled."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth > 1


def _is_plain(parameter: Tensor) -> bool:
    """Whether all that happens to its gradient is seen."""
    return (
        issubclass(type(parameter), nn.Parameter)
        and not parameter._backward_hooks
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def _leaves(roots: Iterable[Node], sources: Sequence[Node]) -> set[int]:
    """Ids of the leaves that lie behind ``roots``, not through ``sources``."""
    accumulate = torch._C._functions.AccumulateGrad
    found = (node.variable for node in behind(roots, sources) if isinstance(node, accumulate))
    return {id(leaf) for leaf in found if not is_probe(leaf)}
