"""One module that may be a critic, and what is seen of its calls, gradients and steps."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim import Optimizer

from topk_plugin.core.graph import is_capturing, reaches
from topk_plugin.core.ledger import Arrival, StepLedger
from topk_plugin.core.parameters import GRADIENT
from topk_plugin.core.ranking import named_leaves, resembles_score
from topk_plugin.core.shielded_gate import Box, GatedCall
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.errors import GeneratorStepUnknown
from topk_plugin.finding.identity import Identity, called, flag, like
from topk_plugin.finding.owners import Ownership
from topk_plugin.finding.rules import Kind, Output, Seen
from topk_plugin.loop.critic_step import reached_of
from topk_plugin.topk import TopK

REMEMBERED = 8
"""Steps of a module's own optimizer that are remembered."""

Pushes = dict[str, tuple[int, int, float]]
"""Of each output, numbers that a backward pushes up and down, and the mean of the gradient."""


class Pull(NamedTuple):
    """A backward that left a gradient in a module's parameters."""

    task: int
    generated: bool  # by a call for samples of the generator
    pushes: Pushes


UNSEEN = Pull(-1, False, {})
"""Of a call that was not shown, as those are that are part of a compiled loss."""


class Made(NamedTuple):
    """What of a call's arguments was made with parameters that other optimizers own."""

    sources: list[Tensor]
    nodes: list[Any]  # that made them; the call may change them in place
    nearest: Any  # accumulator of the nearest of those parameters
    upstream: frozenset[int]  # ids of all parameters there
    accepts: Callable[[Any], bool]  # whether a node is the accumulator of one that is theirs


class Settled(NamedTuple):
    """A step of the generator that went through a module."""

    calls: list[Arrival]
    choices: list[AnyChoice]


class Candidate:
    """A module that is owned by an optimizer and was called outermost.

    Args:
        scorer: what is called.
        owner: what has all of the critic's parameters: the scorer, or what averages its scores.
        identity: by which another process finds it.
    """

    def __init__(self, scorer: nn.Module, owner: nn.Module, identity: Identity, topk: TopK) -> None:
        self.scorer, self.owner = weakref.ref(scorer), weakref.ref(owner)
        self.identity, self.topk = identity, topk
        self.like = like(owner)
        self.copies = False  # several outputs hold the same numbers
        self.entrances: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # what was called for it
        self.own = Ownership(frozenset(), frozenset(), True)
        self.outputs: dict[str, Output] = {}
        self.listed = False
        self.odd = ""  # what it returned that cannot rank samples
        self.steps = 0
        self._settled: Settled | None = None  # by the optimizer step that just ended
        self.used: deque[list[Pull]] = deque(maxlen=REMEMBERED)  # by steps of its own optimizer
        self.taken = False
        self._left: list[Pull] = []  # whose gradients lie in its parameters
        self._pushed: dict[int, Pushes] = {}  # by backward, those that reached the generator
        # of its own: what is no critic misleads nobody
        self.ledger = StepLedger(self._settle, None)
        self.ledger.whole_process = topk.ledger.whole_process
        self.trouble = ""

    # --- calls ------------------------------------------------------------------------------------

    def returned(
        self, output: Any, batch: int, shape: Sequence[int], made: Made | None, generated: bool
    ) -> bool:
        """A call of it gave ``output``; False: numbers of no sample alone, so look inside.

        Args:
            batch, shape: of the samples that it was called with.
            made: of them, by the generator; None: detached, or real.
            generated: they are the generator's, for all that is known.
        """
        known = bool(self.outputs)  # it was called for the generator's samples before
        leaves: dict[str, tuple[Tensor, bool]] = {}
        rows = mean = False
        ids, places = set[int](), set[tuple[int, int]]()
        for name, leaf in named_leaves(output):
            if not (isinstance(leaf, Tensor) and leaf.requires_grad) or id(leaf) in ids:
                continue
            ids.add(id(leaf))  # a list of features may end with the score itself
            if made is not None and not reaches(leaf, made.nodes):
                continue
            place = leaf.untyped_storage().data_ptr(), leaf.numel()
            self.copies |= made is not None and place in places
            places.add(place)
            score, whole = resembles_score(leaf, batch), tuple(leaf.shape) == tuple(shape)
            if leaf.shape[:1] == (batch,) or (batch == 1 and leaf.numel() == 1):
                rows = True
                image = whole and leaf.numel() > batch
                if made is not None:
                    kind: Kind = "image" if image else "score" if score else "numbers"
                    self.outputs.setdefault(name or "0", Output(tuple(leaf.shape), kind))
                if made is not None or known or (score and not image):
                    leaves[name or "0"] = leaf, score and not image
            elif leaf.numel() == 1:
                mean = True
            elif made is not None:
                self.odd = f"{name or '0'} {tuple(leaf.shape)} for a batch of {batch}"
        self.listed |= isinstance(output, list)
        if leaves:
            self._watch(leaves, batch, made, generated)
        return rows or bool(self.odd) or not mean

    def _watch(
        self, leaves: dict[str, tuple[Tensor, bool]], batch: int, made: Made | None,
        generated: bool,
    ) -> None:  # fmt: skip
        names, tensors = [*leaves], [tensor for tensor, _ in leaves.values()]
        pushes: list[Pushes] = []  # of the running backward, for what it arrives at
        call = None if made is None else self._gate(tensors, batch, made, pushes)

        def pulled(gradients: Sequence[Tensor | None]) -> None:
            # grad mode is on inside a backward with create_graph
            if self.taken or torch.is_grad_enabled():
                return
            present = [(n, g) for n, g in zip(names, gradients, strict=True) if g is not None]
            if not present or is_capturing(present[0][1]):
                return
            pushes[:] = [{name: _push(gradient) for name, gradient in present}]
            if reached_of(self._parameters()) is not None:
                task = torch._C._current_graph_task_id()
                self._left.append(Pull(task, generated, pushes[0]))
            if call is not None:
                # the scores vote; other outputs where there are none
                scores = any(leaves[name][1] for name, _ in present)
                read = zip(names, gradients, strict=True)
                votes = [g if leaves[name][1] or not scores else None for name, g in read]
                call.backward(tuple(votes), len(votes))

        register_multi_grad_hook(tensors, pulled)

    def _gate(
        self, outputs: list[Tensor], batch: int, made: Made, pushes: list[Pushes]
    ) -> GatedCall:
        """What a gate would do with a call while k = B: arrive at the ledger."""
        owner, ids = self.owner(), self.own.parameters
        assert owner is not None  # it was called
        training = self.topk.trainings.of(made.upstream - ids, owner, ids)
        known, box = self.topk.ledger.is_marked, Box()
        frozen = not any(parameter.requires_grad for parameter in self._parameters())

        def arrived(choice: AnyChoice, read: list[int]) -> None:
            task = torch._C._current_graph_task_id()
            self._pushed[task] = _added(self._pushed.get(task, {}), pushes[0])
            self.ledger.arrive(
                Arrival(
                    choice, batch, made.nearest.variable, made.upstream - ids, ids, known, task,
                    box, False, training, frozen, lambda: None,
                )
            )  # fmt: skip

        mean = self.topk.config.reduction == "mean"
        ranked = self.topk.line.ranked(outputs, batch, True, training, mean, self.topk.follows)
        return GatedCall("observe", ranked, made.nearest, made.nodes, made.accepts, arrived, box)

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
            if self._left:
                self.used.append(self._left)
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
        self._settled = Settled(calls, choices)
        self.steps += 1
        for task in {call.task for call in calls}:
            for name, (raised, lowered, _) in self._pushed.pop(task, {}).items():
                if name in self.outputs:
                    self.outputs[name].raised += raised
                    self.outputs[name].lowered += lowered

    # --- what was seen ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What it is called."""
        owner = self.owner()
        if owner is None:
            return "what is gone"
        return called(owner, self.identity.part)

    def flag(self, heads: Sequence[str] = ()) -> str | None:
        """How it is named on the command line, if it can be.

        Args:
            heads: its scores; none: what may be.
        """
        owner = self.owner()
        if owner is None or not self.outputs:
            return None
        scores = any(output.kind == "score" for output in self.outputs.values())
        named = self.named(heads) if heads else () if scores else tuple(self.outputs)
        return flag(owner, self.identity.part, named)

    def named(self, heads: Sequence[str]) -> tuple[str, ...]:
        """Of its scores those that have to be named; none where their shape and gradient tell."""
        told = {
            name
            for name, output in self.outputs.items()
            if output.kind == "score" and output.raised + output.lowered
        }
        return () if {*heads} == told and not self.copies else tuple(heads)

    def seen(self, generators: Set[int]) -> Seen:
        """For the rules.

        Args:
            generators: backward passes that were those of a generator's step.
        """
        calls = [*self.ledger.pending, *(call for call, _ in self.ledger.aside)]
        open_ = generators | {call.task for call in calls}
        return Seen(
            self.like,
            self.outputs,
            self.listed,
            self.steps,
            apart=any(any(p.task not in open_ for p in used) for used in self.used),
            helps=any(all(p.task in generators for p in used) for used in self.used),
            contrast=sum(_contrast([p for p in used if p.task not in open_]) for used in self.used),
            trouble=self.trouble,
        )


def _push(gradient: Tensor) -> tuple[int, int, float]:
    """Looked at on the host: nothing is gated yet, so the run is in its first steps."""
    wide = gradient.detach().double()
    numbers = torch.stack([(wide < 0).sum().double(), (wide > 0).sum().double(), wide.mean()])
    raised, lowered, mean = numbers.tolist()
    return int(raised), int(lowered), mean


def _added(a: Pushes, b: Pushes) -> Pushes:
    total = dict(a)
    for name, (raised, lowered, mean) in b.items():
        before = total.get(name, (0, 0, 0.0))
        total[name] = before[0] + raised, before[1] + lowered, before[2] + mean
    return total


def _contrast(pulls: Sequence[Pull]) -> int:
    """Whether a step raised (1) or lowered (-1) generated samples against the others."""
    difference = 0.0
    fakes, others = ([p.pushes for p in pulls if p.generated is of] for of in (True, False))
    for name in {n for one in fakes for n in one} & {n for one in others for n in one}:
        means = [[one[name][2] for one in many if name in one] for many in (fakes, others)]
        of_fakes, of_others = (sum(many) / len(many) for many in means)
        difference += of_others - of_fakes  # a score moves against its gradient
    return (difference > 0) - (difference < 0)
