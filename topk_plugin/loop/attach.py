"""attach(): gate a live critic, whoever calls it, without touching the loss or the loop.

``forward`` is wrapped once on the critic's class, for the attached instances only, so that
``critic(x)``, ``critic.forward(x)`` and a subclass's ``super().forward(x)`` are all seen, while a
deepcopy (EMA) or a pickled critic is the plain module it was.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils import _pytree as pytree

from topk_plugin.core import ranking
from topk_plugin.core.choice import Choice
from topk_plugin.core.ledger import Arrival
from topk_plugin.core.optimizers import listen, unlisten, watch_zeroing
from topk_plugin.core.outputs import with_replaced
from topk_plugin.core.shielded_gate import Box, GatedCall, Mode, gate_inputs, gate_outputs
from topk_plugin.core.training import Training
from topk_plugin.errors import ConfigError, ScoreShapeError
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.loop.generator_graph import generator_test, parameters_upstream
from topk_plugin.loop.intercept import intercept, is_intercepted
from topk_plugin.loop.passes import loaders_in
from topk_plugin.loop.resume import ResumeRecord
from topk_plugin.topk import TopK


def attach(
    critic: nn.Module,
    topk: TopK,
    generator: nn.Module | None = None,
    loader: Any = None,
) -> Attachment:
    """Gate every call of ``critic`` whose gradient reaches the generator.

    Works as a context manager, or until ``remove()``; both put everything back as it was.
    Generator steps are told from critic steps by the optimizers that step, see
    :mod:`topk_plugin.core.ledger`; the gate is the shielded one wherever the step is not known in
    advance, so a critic step keeps exactly the gradients it had.

    A loss that reads the critic past what it returns is an error that is found at the next end of
    an epoch. A critic that changes its input in place is fine, but a loss that reads the changed
    input again is not: mark such generator steps with ``topk.generator_step()``.

    Args:
        critic: called as ``critic(x)`` or ``critic.forward(x)`` with x (B, ...); may be wrapped
            in DataParallel, DistributedDataParallel or torch.compile.
        topk: settings, schedule and statistics; may be shared by several critics.
        generator: the module whose parameters make a call a generator call; without it any
            parameter that is not the critic's.
        loader: the torch DataLoader of the real data, whose passes end the epochs, or what wraps
            it; without it call ``topk.end_epoch()``.

    Raises:
        ConfigError: the critic is no module or is attached already, or the loader is no
            DataLoader and holds none.
        NoEffectError: from a generator step or at the end: the loader delivered nothing.
    """
    if not isinstance(critic, nn.Module) or isinstance(critic, torch.jit.ScriptModule):
        raise ConfigError(
            f"attach: found a {type(critic).__name__} as the critic, expected a torch.nn.Module "
            "(not scripted). Gate a function's scores with topk(scores) instead."
        )
    if not isinstance(topk, TopK):
        raise ConfigError(f"attach: found a {type(topk).__name__} as topk, expected a TopK")
    if generator is not None and not isinstance(generator, nn.Module):
        raise ConfigError(
            f"attach: found a {type(generator).__name__} as the generator, expected a "
            "torch.nn.Module (of several, an nn.ModuleList)"
        )
    tracker = None
    if loader is not None:
        if next(loaders_in(loader), None) is None:
            raise ConfigError(
                f"attach: found a {type(loader).__name__} as the loader, expected a torch "
                "DataLoader, or an object that has one among its attributes. Leave it out and "
                "call topk.end_epoch() after each pass."
            )
        tracker = EpochTracker(topk, loader)
    return Attachment(list(_entrances(critic)), critic, topk, generator, tracker)


class Attachment:
    """Gated modules whose parameters are the critic's; made by :func:`attach`."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        critic: nn.Module,
        topk: TopK,
        generator: nn.Module | None = None,
        tracker: EpochTracker | None = None,
    ) -> None:
        self.topk = topk
        # weakly: the table of interceptors, which holds this object, must not keep networks alive
        self._critic = weakref.ref(critic)
        self._generator = weakref.ref(generator) if generator is not None else None
        self._undo = ExitStack()
        self._tracker = tracker
        self._warned = False
        self._before = (topk.trainings.steps, topk.ledger.optimizer_steps)
        for module in modules:
            if is_intercepted(module):
                raise ConfigError(
                    f"attach: this {type(module).__name__} is attached already; remove() the "
                    "first attachment before attaching it again."
                )
        for module in modules:
            self._undo.callback(intercept(module, self))
        self.record = ResumeRecord(critic, topk, gated=True)
        self._undo.callback(self.record.remove)
        self._undo.callback(watch_zeroing())
        _keep_buffers()
        _attachments.add(self)
        listen(topk.ledger)
        if tracker is not None:
            tracker.start()
            self._undo.callback(tracker.stop)

    def remove(self) -> None:
        """Puts the critic, its class and every hook back as they were; calling it twice is fine."""
        self._undo.close()
        _attachments.discard(self)
        if not any(other.topk is self.topk for other in _attachments):
            unlisten(self.topk.ledger)
        if not _attachments and _donated:
            torch._functorch.config.donated_buffer = _donated.pop()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
        if error is None:
            if self._tracker is not None:
                self._tracker.check()
            steps, optimizer_steps = self._before
            ran = self.topk.ledger.optimizer_steps - optimizer_steps
            for training in self.topk.trainings.all:
                training.audit.check()
            if ran and self.topk.trainings.steps == steps:
                warnings.warn(
                    f"attach: {ran} optimizer steps ran and no generator step was gated. Expected "
                    "loss = f(critic(generator(z))), its backward, and a step of an optimizer that "
                    "owns the generator's parameters.",
                    stacklevel=2,
                )

    @property
    def epochs_counted(self) -> str:
        """How the epochs of the present training were counted, in words."""
        return self.topk.training.progress.told_by

    # --- one call of the critic -----------------------------------------------------------------

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``original(*args, **kwargs)``, gated if its gradient reaches the generator."""
        if (
            getattr(_inside, "a_critic", False)
            or self.topk.is_paused
            or not torch.is_grad_enabled()
        ):
            return original(*args, **kwargs)
        _inside.a_critic = True
        try:
            self.topk.ledger.tell()
            return self._call(original, args, kwargs)
        finally:
            _inside.a_critic = False

    def _call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        plan = self._plan(leaves)
        if plan is None:
            return original(*args, **kwargs)
        box = Box()
        inputs = [leaves[place] for place in plan.places]
        edges: list[GradientEdge] = []
        if plan.mode == "shielded":
            gated = gate_inputs(inputs, box)
            edges = [get_gradient_edge(tensor) for tensor in gated]
            for place, tensor in zip(plan.places, gated, strict=True):
                leaves[place] = tensor
            args, kwargs = pytree.tree_unflatten(leaves, spec)
        sources = [tensor.grad_fn for tensor in inputs]  # the critic may change them in place
        output = original(*args, **kwargs)
        return self._gate(output, plan, leaves[plan.places[0]], sources, edges, box)

    def _plan(self, leaves: Sequence[Any]) -> _Plan | None:
        """How a call with these arguments is gated; None where none of them is the generator's."""
        topk, settings = self.topk, self.topk.config
        critic = self._critic()
        assert critic is not None  # it is being called
        critic_ids = frozenset(map(id, critic.parameters()))
        frozen = not any(p.requires_grad for p in critic.parameters())
        mode: Mode = "shielded"
        if settings.gate == "score" or (
            settings.gate == "auto" and (topk.ledger.is_marked or frozen)
        ):
            mode = "score"
        generator = self._generator() if self._generator is not None else None
        accepts = generator_test(critic_ids, generator, topk.ledger)
        # the walk ends early if the generator is known and nothing else matters
        whole = generator is None or (mode == "shielded" and topk.trainings.any_drops)
        places: list[int] = []
        node, upstream = None, frozenset[int]()
        for place, leaf in enumerate(leaves):
            if not (isinstance(leaf, Tensor) and leaf.grad_fn is not None and leaf.dim()):
                continue
            if places and leaf.shape[0] != leaves[places[0]].shape[0]:
                continue
            found, parameters = parameters_upstream(leaf, accepts, topk.ledger, whole)
            if found is not None:
                places.append(place)
                node = node or found
                upstream |= parameters
        if node is None:
            return None
        of_generator: Set[int] = upstream - critic_ids - topk.ledger.of_critic
        if generator is not None:
            of_generator = {id(p) for p in generator.parameters()}
        training = topk.trainings.of(of_generator, critic_ids, critic)
        if mode == "shielded" and training.progress.fraction == 1:
            mode = "observe"
        learned = topk.ledger.of_critic if topk.ledger.undetached else set()
        unshielded = mode == "shielded" and not upstream.isdisjoint(critic_ids | learned)
        if unshielded:
            # a masked gradient would reach the critic from behind: TopK objects if a generator
            # step turns out to depend on it
            mode = "observe"
        return _Plan(
            mode, places, node, upstream, critic_ids, accepts, topk.ledger.is_marked, unshielded,
            training,
        )  # fmt: skip

    def _gate(
        self, output: Any, plan: _Plan, source: Tensor, sources: list[Node],
        edges: list[GradientEdge], box: Box,
    ) -> Any:  # fmt: skip
        """The critic's ``output`` for the samples ``source``, gated."""
        topk, training, batch = self.topk, plan.training, source.shape[0]
        critic = self._critic()
        assert critic is not None  # it was called
        heads, named = topk.line.heads_of(output, batch)
        if not named and heads[0].shape == source.shape and source.numel() > batch:
            raise ScoreShapeError(
                f"the critic returns {ranking.describe(output)}, as large as its input "
                f"{tuple(source.shape)}: an image, not a score; expected one score per sample. "
                "Top-k needs a critic that scores samples (an autoencoding critic does not)."
            )
        order = ranking.ranking_scores(heads, batch, named)
        if not any(head.requires_grad for head in heads):
            return output

        def arrived(choice: Choice) -> None:
            self.record.training = training
            training.critics.add(critic)
            topk.ledger.arrive(
                Arrival(
                    choice,
                    batch,
                    plan.node.variable,  # type: ignore[attr-defined]
                    plan.upstream - plan.critic_ids,
                    plan.critic_ids,
                    plan.known,
                    torch._C._current_graph_task_id(),
                    box,
                    plan.unshielded,
                    training,
                )
            )

        mean = topk.config.reduction == "mean"
        call = GatedCall(
            plan.mode, order, training.state(order.device), mean, plan.node, sources,
            plan.accepts, arrived, box, training.audit.goes_on, topk.select, topk.follows,
        )  # fmt: skip
        others = [
            leaf
            for leaf in pytree.tree_leaves(output)
            if isinstance(leaf, Tensor)
            and leaf.grad_fn is not None
            and not any(leaf is head for head in heads)
        ]
        self._warn_of_other_scores(output, others, batch, named)
        gated = gate_outputs(call, heads, others, edges)
        return with_replaced(output, [*heads, *others][: len(gated)], gated)

    def _warn_of_other_scores(
        self, output: Any, others: Sequence[Tensor], batch: int, named: bool
    ) -> None:
        alike = [leaf for leaf in others if ranking.resembles_score(leaf, batch)]
        if alike and not named and not self._warned:
            self._warned = True
            warnings.warn(
                f"the critic returns {ranking.describe(output)}: only the first score is gated, "
                f"not {ranking.describe(alike)}. If the generator's loss reads those as scores "
                "too, name all of them: --heads 0,1 or TopK(heads=(0, 1)).",
                stacklevel=2,
            )


class _Plan(NamedTuple):
    """How one call of the critic is gated."""

    mode: Mode
    places: list[int]  # of its arguments that are the generator's
    node: Node  # the accumulator of the nearest generator parameter
    upstream: frozenset[int]  # ids of all parameters there, the critic's included
    critic_ids: frozenset[int]
    accepts: Callable[[Node], bool]  # whether a node is a generator parameter's accumulator
    known: bool  # declared a generator step
    unshielded: bool  # no gate can be exact, so it is left alone
    training: Training  # whose generator it is


_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_donated: list[bool] = []  # torch.compile's setting before the first attachment
_inside = threading.local()  # a critic called by an attached critic is part of it


def _keep_buffers() -> None:
    """Let compiled critics be replayed.

    The shielded gate runs a critic's backward twice, and torch.compile by default lets the first
    run overwrite what was saved. What was compiled before is compiled anew: its backward would
    read garbage.
    """
    if _donated:
        return
    _donated.append(torch._functorch.config.donated_buffer)
    if _donated[0]:
        torch._functorch.config.donated_buffer = False
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()


def _entrances(critic: nn.Module) -> Iterator[nn.Module]:
    """The modules whose call is a call of the critic; the outermost one that is called gates.

    DistributedDataParallel is passed through to its module, so that what it hooks stays outside
    the gate. DataParallel's replicas see a shard each, so its own output is gated as well.
    """
    while isinstance(critic, nn.parallel.DistributedDataParallel):
        critic = critic.module
    yield critic
    if isinstance(critic, nn.DataParallel):
        yield from _entrances(critic.module)
