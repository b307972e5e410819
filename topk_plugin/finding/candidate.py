"""One module that may be a critic, and what is seen of its calls, gradients and steps."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topk_plugin.core.arrival import Arrival
from topk_plugin.core.graph import is_capturing, on_gradients
from topk_plugin.core.ledger import StepLedger
from topk_plugin.core.parameters import GRADIENT, way_of
from topk_plugin.core.sharded import owner_of
from topk_plugin.core.shielded_gate import Box, GatedCall
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.errors import GeneratorStepUnknown
from topk_plugin.finding.identity import Identity, called, flag, like, with_heads
from topk_plugin.finding.outputs import Outputs, Returned
from topk_plugin.finding.owners import Ownership
from topk_plugin.finding.pushes import (
    UNSEEN,
    Pull,
    Pushes,
    added,
    contrast,
    nothing_dropped,
    parted,
    pushes,
    stepped,
)
from topk_plugin.finding.rules import LONE, Seen, heads_of, unanimous
from topk_plugin.loop.critic_step import reached_of
from topk_plugin.topk import TopK

REMEMBERED = 8
"""Steps of a module's own optimizer that are remembered."""


FEW = 4096
"""Numbers of a sample of which it is looked at how the loss reads them: of more it takes long."""


class Made(NamedTuple):
    """What of a call's arguments was made with parameters that other optimizers own."""

    sources: list[Tensor]
    nodes: list[Any]  # that made them; the call may change them in place
    nearest: Any  # accumulator of the nearest of those parameters
    upstream: frozenset[int]  # ids of all parameters there
    accepts: Callable[[Any], bool]  # whether a node is the accumulator of one that is theirs
    rows: slice | None  # of the batch that were; None: all


class Settled(NamedTuple):
    """A step of the generator that went through a module."""

    calls: list[Arrival]
    pushed: bool  # by a gradient: a loss that sets in later may have the weight 0 until then


class Candidate:
    """A module that is owned by an optimizer and was called outermost.

    Args:
        scorer: what is called.
        owner: what has all of the critic's parameters: the scorer, or what averages its scores.
        identity: by which another process finds it.
    """

    def __init__(self, scorer: nn.Module, owner: nn.Module, identity: Identity, topk: TopK) -> None:
        self.scorer, self.owner = weakref.ref(scorer), weakref.ref(owner)
        self.identity, self.topk, self._called = identity, topk, called(owner, identity.part)
        self.like, self._flag = like(owner), flag(owner, identity.part)  # also when it is gone
        self.entrances: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # what was called for it
        self.own = Ownership(frozenset(), frozenset(), True)
        self.outputs = Outputs()
        self.steps = 0  # of the generator, whose gradient came through it
        self._settled: Settled | None = None  # by the optimizer step that just ended
        self.used: deque[list[Pull]] = deque(maxlen=REMEMBERED)  # by steps of its own optimizer
        self.taken = False
        self._left: list[Pull] = []  # whose gradients lie in its parameters
        # by call, what all backwards did that reached the generator
        self._pushed: weakref.WeakKeyDictionary[Box, Pushes] = weakref.WeakKeyDictionary()
        # of its own: what is no critic misleads nobody
        self.ledger = StepLedger(self._settle, None)
        self.ledger.whole_process = topk.ledger.whole_process
        self.trouble = ""

    # --- calls ------------------------------------------------------------------------------------

    def returned(
        self, output: Any, batch: int, shape: Sequence[int], made: Made | None,
        generated: bool | Tensor,
    ) -> tuple[Any, bool]:  # fmt: skip
        """A call of it gave ``output``.

        Args:
            batch: scores of it; see :func:`~topk_plugin.core.ranking.rows_scored`.
            shape: of the samples that it was called with.
            made: of them, by the generator; None: detached, or real.
            generated: they are the generator's, for all that is known, or (B,) bool: which scores
                are of such.

        Returns:
            what the loop gets for it, and whether there are numbers of each sample in it: else
            look inside.
        """
        seen = self.outputs.take(output, batch, shape, None if made is None else made.nodes)
        if seen.leaves:
            self._watch(seen, batch, made, generated)
        return seen.output, seen.whole

    def _watch(
        self, seen: Returned, batch: int, made: Made | None, generated: bool | Tensor
    ) -> None:
        leaves = seen.leaves
        names = [*leaves, *seen.beside]
        tensors = [tensor for tensor, _ in (*leaves.values(), *seen.beside.values())]
        latest: list[Pushes] = []  # of the running backward, for what it arrives at
        rows = slice(0, batch)  # that would be ranked
        if made is not None and made.rows is not None and len(made.sources[0]) == batch:
            rows = made.rows
        mine = tensors[: len(leaves)]
        scores = {
            name: leaf.detach()[rows]
            for name, (leaf, score) in leaves.items()
            if not score and leaf.shape[:1] == (batch,) and 1 < leaf.numel() // batch <= FEW
        }
        call = None if made is None else self._gate(mine, batch, rows, made, latest)

        def pulled(gradients: Sequence[Tensor | None]) -> None:
            # grad mode is on inside a backward with create_graph
            if self.taken or torch.is_grad_enabled():
                return
            present = [(n, g) for n, g in zip(names, gradients, strict=True) if g is not None]
            if not present or is_capturing(present[0][1]):
                return
            of_theirs = [(n, g[rows] if g.shape[:1] == (batch,) else g) for n, g in present]
            latest[:] = [pushes(of_theirs, scores if call is not None else None)]
            if reached_of(self._parameters()) is not None:
                task = torch._C._current_graph_task_id()
                parts = parted(present, generated, batch)
                self._left += [Pull(task, of, pushed) for of, pushed in parts]
            if call is not None:
                # the scores vote; other outputs where there are none
                voters = any(leaves[name][1] for name, _ in present if name in leaves)
                if self.outputs.hold_scores and not any(score for _, score in leaves.values()):
                    return  # its features alone, in another mode
                read = dict(of_theirs)
                votes = [read.get(n) if leaves[n][1] or not voters else None for n in leaves]
                call.backward(tuple(votes), len(votes))

        on_gradients(tensors, pulled)

    def _gate(
        self, outputs: list[Tensor], batch: int, rows: slice, made: Made, latest: list[Pushes]
    ) -> GatedCall:
        """What a gate would do with a call while k = B: arrive at the ledger."""
        owner, ids = self.owner(), self.own.parameters
        assert owner is not None  # it was called
        if rows != slice(0, batch):
            outputs, batch = [o.detach()[rows] for o in outputs], rows.stop - rows.start
        training = self.topk.trainings.of(made.upstream - ids, owner)
        known, box = self.topk.ledger.is_marked, Box()
        frozen = not any(parameter.requires_grad for parameter in self._parameters())

        def arrived(choice: AnyChoice, read: list[int], stopped: bool) -> None:
            task = torch._C._current_graph_task_id()
            self._pushed[box] = added(self._pushed.get(box, {}), latest[0])
            if training.progress.fraction < 1:
                choice = nothing_dropped(choice)
            self.ledger.arrive(
                Arrival(
                    choice, batch, owner_of(made.nearest.variable), made.upstream - ids, ids,
                    known, task, box, False, training, frozen, lambda: None, stopped=stopped,
                )
            )  # fmt: skip

        mean = self.topk.config.reduction == "mean"
        ranked = self.topk.line.ranked(outputs, batch, True, training, mean)
        call = GatedCall(
            "observe", ranked, made.nearest, made.nodes, made.accepts, arrived, box,
            sent_on=lambda: known or training.by_samples,
        )  # fmt: skip
        call.looks = [training.parts.looks(outputs, batch)]
        return call

    def _parameters(self) -> list[nn.Parameter]:
        owner = self.owner()
        return [] if owner is None else list(owner.parameters())

    # --- steps ------------------------------------------------------------------------------------

    def optimizer_stepped(self, optimizer: Optimizer, owned: Set[int]) -> Settled | None:
        """An outermost step of what owns the parameters ``owned``, by id, ended.

        Returns:
            the calls of it, if it was a step of the generator.
        """
        self._settled = None
        if not self.own.parameters.isdisjoint(owned):
            if not self._left and any(GRADIENT.__get__(p) is not None for p in self._parameters()):
                self._left = [UNSEEN]
            way = way_of(optimizer)
            if self._left:
                turned = [pull._replace(pushes=stepped(pull.pushes, way)) for pull in self._left]
                self.used.append(turned)
            self._left = []
        if not self.trouble:
            try:
                self.ledger.optimizer_stepped(optimizer)
            except GeneratorStepUnknown as error:
                self.trouble = str(error)
        return self._settled

    def zeroed(self, parameters: set[int]) -> None:
        """Gradients of ``parameters``, by id, were set to zero."""
        if not self.own.parameters.isdisjoint(parameters):
            self._left = []
        self.ledger.thrown_away(parameters)

    def _settle(
        self, calls: list[Arrival], choices: list[AnyChoice], optimizer: Optimizer | None
    ) -> None:
        pushed, way = False, 1 if optimizer is None else way_of(optimizer)
        for call in calls:
            for name, push in stepped(self._pushed.pop(call.box, {}), way).items():
                if name in self.outputs:
                    self.outputs[name].take(push)
                pushed |= push.raised + push.lowered > 0 and not call.box.weighs_nothing
        self.steps += pushed
        self._settled = Settled(calls, pushed)

    # --- what was seen ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What it is called."""
        owner = self.owner()
        if owner is not None:
            self._called = called(owner, self.identity.part)
            return self._called
        return f"{self._called}, which is gone"

    def flag(self, heads: Sequence[str] = ()) -> str | None:
        """How it is named on the command line, if it can be.

        Args:
            heads: its scores; none: what may be.
        """
        outputs = self.outputs
        if self._flag is None or not outputs:
            return None
        seen = Seen(self.like, outputs, outputs.listed)
        heads = heads or heads_of(seen, LONE)[0] or unanimous(seen)
        return with_heads(self._flag, outputs.named(heads) if heads else outputs.likely)

    def seen(self, generators: Set[int]) -> Seen:
        """For the rules.

        Args:
            generators: backward passes that were those of a generator's step.
        """
        calls = [*self.ledger.pending, *(call for call, _ in self.ledger.aside)]
        open_ = set(generators).union(*(call.tasks for call in calls))
        seen = Seen(
            self.like,
            self.outputs,
            self.outputs.listed,
            self.steps,
            apart=any(any(p.task not in open_ for p in used) for used in self.used),
            helps=any(all(p.task in generators for p in used) for used in self.used),
            trouble=self.trouble,
        )
        own = [[p for p in used if p.task not in open_] for used in self.used]
        heads = heads_of(seen, LONE)[0] or unanimous(seen)
        twins = {name: self.outputs.twins(name) for name in heads}
        seen.contrast = sum(contrast(pulls, twins) for pulls in own)
        return seen
