"""One module that may be a critic, and what is seen of its calls, gradients and steps."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim import Optimizer

from topk_plugin.core.graph import is_capturing, reaches
from topk_plugin.core.ledger import Arrival, StepLedger
from topk_plugin.core.outputs import with_replaced
from topk_plugin.core.ranking import named_leaves, resembles_score
from topk_plugin.core.shielded_gate import Box, GatedCall
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.errors import GeneratorStepUnknown
from topk_plugin.finding.identity import Identity, called, flag, like
from topk_plugin.finding.owners import Ownership
from topk_plugin.finding.rules import LONE, Kind, Output, Seen, heads_of
from topk_plugin.loop.critic_step import reached_of
from topk_plugin.topk import TopK

REMEMBERED = 8
"""Steps of a module's own optimizer that are remembered."""

Pushes = dict[str, tuple[int, int, float]]
"""Of each output, numbers that a backward pushes up and down, and the mean of the gradient."""


Gradients = Sequence[tuple[str, Tensor]]
"""Of outputs by name, each (B, ...)."""

Leaves = dict[str, tuple[Tensor, bool]]
"""Outputs by name, and whether they may be scores by their shape."""


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
        self.beside: dict[str, tuple[int, ...]] = {}  # shapes of outputs for other samples alone
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
        self, output: Any, batch: int, shape: Sequence[int], made: Made | None,
        generated: bool | slice,
    ) -> tuple[Any, bool]:  # fmt: skip
        """A call of it gave ``output``.

        Args:
            batch, shape: of the samples that it was called with.
            made: of them, by the generator; None: detached, or real.
            generated: they are the generator's, for all that is known, or where in the batch.

        Returns:
            what the loop gets for it, and whether there are numbers of each sample in it: else
            look inside.
        """
        known = bool(self.outputs)  # it was called for the generator's samples before
        leaves: Leaves = {}
        beside: Leaves = {}
        rows = mean = False
        ids, places = set[int](), set[tuple[int, int]]()
        for name, leaf in named_leaves(output):
            if not (isinstance(leaf, Tensor) and leaf.requires_grad) or id(leaf) in ids:
                continue
            ids.add(id(leaf))  # a list of features may end with the score itself
            if made is not None and not reaches(leaf, made.nodes):
                if leaf.shape[:1] == (batch,):
                    self.beside[name or "0"] = tuple(leaf.shape)
                    beside[name or "0"] = leaf, False
                continue
            place = leaf.untyped_storage().data_ptr(), leaf.numel()
            self.copies |= made is not None and place in places
            places.add(place)
            score, whole = resembles_score(leaf, batch), tuple(leaf.shape) == tuple(shape)
            if leaf.shape[:1] == (batch,) or (batch == 1 and leaf.numel() == 1):
                rows = True
                image = whole and leaf.numel() > batch
                kind: Kind = "image" if image else "score" if score else "numbers"
                key = self._key(name or "0", kind)
                if made is not None:
                    self.outputs.setdefault(key, Output(tuple(leaf.shape), kind))
                if made is not None or known or kind == "score":
                    leaves[key] = leaf, kind == "score"
            elif leaf.numel() == 1:
                mean = True
            elif made is not None:
                self.odd = f"{name or '0'} {tuple(leaf.shape)} for a batch of {batch}"
        self.listed |= isinstance(output, list)
        if leaves and made is not None:
            output, leaves = _apart(output, leaves)
        if leaves:
            self._watch(leaves, beside, batch, made, generated)
        return output, rows or bool(self.odd) or not mean

    def _key(self, name: str, kind: Kind) -> str:
        """Of an output by its name: in another mode it may be something else."""
        known = self.outputs.get(name)
        return name if known is None or known.kind == kind else f"{name} ({kind})"

    def _watch(
        self, leaves: Leaves, beside: Leaves, batch: int, made: Made | None,
        generated: bool | slice,
    ) -> None:  # fmt: skip
        tensors = [tensor for tensor, _ in leaves.values()]
        watched = [*tensors, *(tensor for tensor, _ in beside.values())]
        names = [*leaves, *beside]
        pushes: list[Pushes] = []  # of the running backward, for what it arrives at
        call = None if made is None else self._gate(tensors, batch, made, pushes)

        def pulled(gradients: Sequence[Tensor | None]) -> None:
            # grad mode is on inside a backward with create_graph
            if self.taken or torch.is_grad_enabled():
                return
            present = [(n, g) for n, g in zip(names, gradients, strict=True) if g is not None]
            if not present or is_capturing(present[0][1]):
                return
            pushes[:] = [_pushes(present)]
            if reached_of(self._parameters()) is not None:
                task = torch._C._current_graph_task_id()
                parts = _parted(present, generated, batch)
                self._left += [Pull(task, of, pushed) for of, pushed in parts]
            if call is not None:
                # the scores vote; other outputs where there are none
                scores = any(leaves[name][1] for name, _ in present if name in leaves)
                read = zip(leaves, gradients, strict=False)
                votes = [g if leaves[name][1] or not scores else None for name, g in read]
                call.backward(tuple(votes), len(votes))

        register_multi_grad_hook(watched, pulled)

    def _gate(
        self, outputs: list[Tensor], batch: int, made: Made, pushes: list[Pushes]
    ) -> GatedCall:
        """What a gate would do with a call while k = B: arrive at the ledger."""
        owner, ids = self.owner(), self.own.parameters
        assert owner is not None  # it was called
        training = self.topk.trainings.of(made.upstream - ids, owner)
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
            if not self._left and any(p.grad is not None for p in self._parameters()):
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
        heads = heads or heads_of(Seen(self.like, self.outputs, self.listed), LONE)[0]
        if owner is None or not self.outputs:
            return None
        return flag(owner, self.identity.part, self.named(heads) if heads else self._likely)

    @property
    def returns_images(self) -> bool:
        """And no score beside them."""
        kinds = {output.kind for output in self.outputs.values()}
        return "image" in kinds and "score" not in kinds

    @property
    def _likely(self) -> tuple[str, ...]:
        """Outputs that have to be named, if any, where none is a score for certain."""
        kinds = {name: output.kind for name, output in self.outputs.items()}
        if "score" in kinds.values():
            return ()
        return tuple(n for n, kind in kinds.items() if kind == "image" or not self.returns_images)

    def named(self, heads: Sequence[str]) -> tuple[str, ...]:
        """Of its scores those that have to be named; none where their shape and gradient tell."""
        told = {
            name
            for name, output in self.outputs.items()
            if output.kind == "score" and output.raised + output.lowered
        }
        if {*heads} == told and not self.copies:
            return ()
        return tuple(head.partition(" (")[0] for head in heads)

    def seen(self, generators: Set[int]) -> Seen:
        """For the rules.

        Args:
            generators: backward passes that were those of a generator's step.
        """
        calls = [*self.ledger.pending, *(call for call, _ in self.ledger.aside)]
        open_ = generators | {call.task for call in calls}
        seen = Seen(
            self.like,
            self.outputs,
            self.listed,
            self.steps,
            apart=any(any(p.task not in open_ for p in used) for used in self.used),
            helps=any(all(p.task in generators for p in used) for used in self.used),
            trouble=self.trouble,
        )
        own = [[p for p in used if p.task not in open_] for used in self.used]
        twins = {name: self._twins(name) for name in heads_of(seen, LONE)[0]}
        seen.contrast = sum(_contrast(pulls, twins) for pulls in own)
        return seen

    def _twins(self, head: str) -> set[str]:
        """Outputs like ``head`` for the samples that are set against the generator's, in one call
        for both."""
        shape = self.outputs[head].shape
        idle = {n: o.shape for n, o in self.outputs.items() if not o.raised + o.lowered}
        return {name for name, of in (self.beside | idle).items() if of == shape and name != head}


def _apart(output: Any, leaves: Leaves) -> tuple[Any, Leaves]:
    """``output`` with views of ``leaves``: a loss that reads one of several outputs sends nothing
    to the views of those that it was made of."""
    if len(leaves) < 2:
        return output, leaves
    views = {name: (leaf.view_as(leaf), score) for name, (leaf, score) in leaves.items()}
    old, new = ([leaf for leaf, _ in many.values()] for many in (leaves, views))
    return with_replaced(output, old, tuple(new)), views


def _push(gradient: Tensor) -> tuple[int, int, float]:
    """Looked at on the host: nothing is gated yet, so the run is in its first steps."""
    wide = gradient.detach().double()
    numbers = torch.stack([(wide < 0).sum().double(), (wide > 0).sum().double(), wide.mean()])
    raised, lowered, mean = numbers.tolist()
    return int(raised), int(lowered), mean


def _pushes(present: Gradients) -> Pushes:
    return {name: _push(gradient) for name, gradient in present}


def _parted(
    present: Gradients, generated: bool | slice, batch: int
) -> Iterator[tuple[bool, Pushes]]:
    """The gradients for generated samples, and those for others, of a ``batch`` that holds both."""
    if isinstance(generated, slice) and all(g.shape[:1] == (batch,) for _, g in present):
        before, after = generated.start, generated.stop
        yield True, _pushes([(name, g[generated]) for name, g in present])
        yield False, _pushes([(name, torch.cat([g[:before], g[after:]])) for name, g in present])
    else:
        yield bool(generated), _pushes(present)


def _added(a: Pushes, b: Pushes) -> Pushes:
    total = dict(a)
    for name, (raised, lowered, mean) in b.items():
        before = total.get(name, (0, 0, 0.0))
        total[name] = before[0] + raised, before[1] + lowered, before[2] + mean
    return total


def _contrast(pulls: Sequence[Pull], twins: Mapping[str, Set[str]]) -> int:
    """Whether a step raised (1) or lowered (-1) generated samples against the others.

    Args:
        twins: for each score, the outputs for other samples that one call gives with it.
    """
    difference = 0.0
    fakes, others = ([p.pushes for p in pulls if p.generated is of] for of in (True, False))
    for name, beside in twins.items():
        of_fakes = [one[name][2] for one in fakes if name in one]
        of_others = [one[name][2] for one in others if name in one]
        of_others += [one[twin][2] for one in fakes for twin in beside & one.keys()]
        if of_fakes and of_others:  # a score moves against its gradient
            difference += sum(of_others) / len(of_others) - sum(of_fakes) / len(of_fakes)
    return (difference > 0) - (difference < 0)
