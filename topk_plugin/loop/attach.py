"""attach(): gate a live critic, whoever calls it, without touching the loss or the loop.

``forward`` is wrapped once on the critic's class, for the attached instances only, so that
``critic(x)``, ``critic.forward(x)`` and a subclass's ``super().forward(x)`` are all seen, while a
deepcopy (EMA) or a pickled critic is the plain module it was.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from topk_plugin.compat import keep_buffers, nodes_made
from topk_plugin.core.arrival import Arrival
from topk_plugin.core.line import AnyRanked
from topk_plugin.core.optimizers import listen, unlisten, watch_zeroing
from topk_plugin.core.outputs import with_replaced
from topk_plugin.core.parameters import ModuleParameters
from topk_plugin.core.parts import PartChoice, PartRanked, those_read
from topk_plugin.core.ranking import rows_scored
from topk_plugin.core.sharded import owner_of
from topk_plugin.core.shielded_gate import Box, GatedCall, gate_inputs, gate_outputs
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.core.trees import flatten, tree_leaves
from topk_plugin.errors import ConfigError, TopKError
from topk_plugin.kinds import HEADS
from topk_plugin.loop.coupling_probe import CouplingProbe, coupled_rows
from topk_plugin.loop.ending import warn_of_nothing
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.loop.frozen import frozen, learners, watch_checkpointing
from topk_plugin.loop.heads import Heads, names_of
from topk_plugin.loop.intercept import intercept, is_intercepted
from topk_plugin.loop.mixed import Mixed
from topk_plugin.loop.passes import loaders_in
from topk_plugin.loop.places import Places, Visit
from topk_plugin.loop.plan import Plan, planned
from topk_plugin.loop.resume import ResumeRecord
from topk_plugin.loop.row_probe import RowProbe
from topk_plugin.loop.traced import enter_critic, inside
from topk_plugin.loop.witness import as_warning, witness_of
from topk_plugin.loop.wrappers import entrances
from topk_plugin.streams import warn
from topk_plugin.topk import TopK


def attach(
    critic: nn.Module,
    topk: TopK,
    generator: nn.Module | None = None,
    loader: Any = None,
    heads: Sequence[str | int] = (),
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
            in DataParallel, DistributedDataParallel or torch.compile. Where it scores packs of p
            samples, (B / p, 1), the packs are ranked.
        topk: settings, schedule and statistics; may be shared by several critics.
        generator: the module whose parameters make a call a generator call; without it any
            parameter that is not the critic's.
        loader: the torch DataLoader of the real data, whose passes end the epochs, or what wraps
            it; without it call ``topk.end_epoch()``.
        heads: names or indices of this critic's outputs that are scores, where several critics
            have heads of their own; none: those of the settings.

    Raises:
        ConfigError: the critic is no module or is attached already, the loader is no DataLoader
            and holds none, or the heads are no list of names.
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
    try:
        own = HEADS.check(heads)
    except ValueError:
        raise ConfigError(f"attach: found heads {heads!r}, expected {HEADS.expected}") from None
    first = not topk.trainings.steps and not any(a.topk is topk for a in _attachments)
    attachment = Attachment(
        list(entrances(critic)), critic, topk, generator, tracker, own, as_warning
    )
    if first:  # of several critics' attachments one looks at the loss
        attachment.probe_loss()
    return attachment


class Attachment:
    """Gated modules whose parameters are the critic's; made by :func:`attach`.

    Args:
        tell: told of critics in the generator's loss that are not gated.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        critic: nn.Module,
        topk: TopK,
        generator: nn.Module | None = None,
        tracker: EpochTracker | None = None,
        heads: Sequence[str | int] = (),
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.topk, self.heads = topk, Heads(topk.line, heads)
        self.took_part = False  # its scores were those of a generator step
        # weakly: the table of interceptors, which holds this object, must not keep networks alive
        self._critic = weakref.ref(critic)
        self._is_distributed = isinstance(critic, nn.parallel.DistributedDataParallel)
        self._parameters, self._rows = ModuleParameters(critic), RowProbe()
        self._places = Places(topk, critic)
        self._generator = ModuleParameters(generator) if generator is not None else None
        self._undo = ExitStack()
        self._tracker = tracker
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
        self._undo.callback(watch_checkpointing())
        self._undo.callback(self._places.stop)
        _keep_buffers()
        self.witness = witness_of(topk, tell)
        self._undo.callback(self.witness.watch(critic))
        _attachments.add(self)
        topk.critics += 1
        self._undo.callback(self._detached)
        listen(topk.ledger)
        if tracker is not None:
            tracker.start()
            self._undo.callback(tracker.stop)

    def probe_loss(self) -> None:
        """Warns, once, if the loss of the next generator steps couples the rows of a batch."""

        def tell(name: str) -> None:
            advice = "Gate the kept rows themselves, topk.gather(scores, *companions)."
            warn(f"attach: {coupled_rows(name)}. {advice}", stacklevel=2)

        probe = CouplingProbe(self.topk, tell)
        probe.start()
        self._undo.callback(probe.stop)

    def remove(self) -> None:
        """Puts the critic, its class and every hook back as they were; calling it twice is fine."""
        self._undo.close()
        _attachments.discard(self)
        if not any(other.topk is self.topk for other in _attachments):
            unlisten(self.topk.ledger)
        if not _attachments and _kept:
            keep_buffers(_kept.pop())

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
            warn_of_nothing(self.topk, *self._before)

    def _detached(self) -> None:
        self.topk.critics -= 1

    def counted(self, visit: Visit | None) -> None:
        """A call of it was one of a generator step."""
        self.took_part = True
        if visit is not None:
            visit.counted(self.topk.training)

    @property
    def epochs_counted(self) -> str:
        """How the epochs of the present training were counted, in words."""
        return self.topk.training.progress.told_by

    # --- one call of the critic -----------------------------------------------------------------

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``original(*args, **kwargs)``, gated if its gradient reaches the generator."""
        if (
            inside.a_critic
            or not torch.is_grad_enabled()
            or torch._C._get_tracing_state() is not None  # torch.jit.trace: no step of a training
        ):
            return original(*args, **kwargs)
        enter_critic(True)
        try:
            if self.topk.is_paused:
                return original(*args, **kwargs)
            self.topk.ledger.calling()
            with self._spared() if self.topk.ledger.spares_critic else nullcontext():
                return self._call(original, args, kwargs)
        except TopKError as error:
            self.topk.ledger.failure = self.topk.ledger.failure or error
            raise
        finally:
            enter_critic(False)

    def _spared(self) -> AbstractContextManager[None]:
        """The critic's parameters are frozen inside.

        In its calls alone: what it shares with the generator learns from what that does with it.
        """
        if self._is_distributed:
            raise ConfigError(
                "generator_step(spare=True): found a critic in DistributedDataParallel, which "
                "waits for the gradient of each parameter that it was built with. Expected a "
                "critic outside of it; leave spare out."
            )
        return frozen(learners(self._parameters.owned or ()))

    def _call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        leaves, rebuild = ([*args], None) if alone else flatten((args, kwargs))
        critic, parameters = self._critic(), self._parameters.owned
        assert critic is not None  # it is being called
        assert parameters is not None
        generator = self._generator.owned if self._generator is not None else None
        plan = planned(leaves, critic, parameters, generator, self.topk)
        if plan is None:
            output = original(*args, **kwargs)
            self.heads.look(output, leaves)
            self.witness.scored(self._critic(), leaves, output)
            return output
        inputs = [leaves[place] for place in plan.places]
        visit = self._places.visit(plan, parameters, leaves)
        spared = visit is not None and visit.spared
        if spared:
            plan = plan._replace(mode="score", frozen=True)
        box, ends = Box(), list[Any]()
        if plan.mode == "shielded" or plan.rehearsed:
            gated, ends = gate_inputs(inputs, box)
            for place, tensor in zip(plan.places, gated, strict=True):
                leaves[place] = tensor
            args, kwargs = (leaves, {}) if rebuild is None else rebuild(leaves)
        sources = [tensor.grad_fn for tensor in inputs]  # the critic may change them in place
        modes = self._parameters.modes if plan.mode == "shielded" else ()
        nodes = nodes_made()
        with frozen(visit.learners) if visit is not None and spared else nullcontext():
            output = original(*args, **kwargs)
        if plan.mode == "shielded":
            # a branch that makes rows act on each other makes other nodes, too
            nodes = nodes_made() - nodes
            self._rows.tell(box, parameters, (modes, nodes), inputs, output, plan.rows)
            self._places.seen(visit, box.apart)
        if visit is not None:
            visit.returned(output, sources)
        source, beside, rows = leaves[plan.places[0]], list[Tensor](), plan.rows
        mixed = None if rows is None else Mixed(output, rows, len(source))
        if mixed is not None and mixed.is_one:
            plan, source, beside = plan.of_rows(), source[rows], mixed.others()
            gated = self._gate(mixed.generated(), plan, source, sources, ends, box, visit, beside)
            gated = mixed.joined(gated, beside)
        else:
            gated = self._gate(output, plan, source, sources, ends, box, visit, beside)
        self.witness.scored(self._critic(), leaves, gated, plan.places, plan.training, rows)
        return gated

    def _gate(
        self, output: Any, plan: Plan, source: Tensor, sources: list[Node],
        ends: list[Any], box: Box, visit: Visit | None, beside: list[Tensor],
    ) -> Any:  # fmt: skip
        """The critic's ``output`` for the samples ``source``, gated.

        Args:
            beside: what it returned for other samples of the batch; becomes that of the gate.
        """
        topk, training, batch = self.topk, plan.training, rows_scored(output, source.shape[0])
        labels = plan.labels if batch == source.shape[0] else None
        critic = self._critic()
        assert critic is not None  # it was called
        if not self.heads.see(output, batch):
            return output
        output = self.topk.line.apart(output, self.heads.names)
        heads, named = self.heads.of(output, source, sources, plan.places)
        mean = topk.config.reduction == "mean"
        if not any(head.requires_grad for head in heads):
            return output
        ranked: AnyRanked | PartRanked
        ranked = topk.line.ranked(heads, batch, named, training, mean, self)
        if training.parts.found:
            ranked = PartRanked(ranked)

        names = names_of(output, heads) if plan.audit and len(heads) > 1 else []

        def arrived(choice: AnyChoice | PartChoice, read: list[int], stopped: bool) -> None:
            choice, of = those_read(choice, labels)
            if names:
                training.heads = [names[place] for place in read]
            self.record.training = training
            training.critics.add(critic)
            if visit is not None:
                visit.arrived()
            masks = plan.masks and not training.progress.is_held  # an audit says it itself
            parameter = owner_of(plan.node.variable)  # type: ignore[attr-defined]
            topk.ledger.arrive(
                Arrival(
                    choice, choice.batch, parameter, plan.upstream - plan.critic_ids,
                    plan.critic_ids, plan.known, torch._C._current_graph_task_id(), box,
                    plan.unshielded, training, plan.frozen, functools.partial(self.counted, visit),
                    masks, stopped, of,
                )
            )  # fmt: skip

        call = GatedCall(
            plan.mode, ranked, plan.node, sources, plan.accepts, arrived, box, plan.audit,
            topk.follows, lambda: plan.known or training.by_samples,
        )  # fmt: skip
        others = [
            leaf
            for leaf in (() if output is heads[0] else tree_leaves(output))
            if isinstance(leaf, Tensor)
            and leaf.grad_fn is not None
            and not any(leaf is head for head in heads)
        ]
        if plan.audit:
            look = self.heads.looks(output, heads, others, batch, named)
            call.looks = [training.parts.looks(heads, batch), *([look] if look else [])]
        call.masks_stops = lambda: training.stops_too
        call.beside, ours = len(beside), [*heads, *others]
        gated = gate_outputs(call, heads, [*others, *beside], ends)
        if len(gated) > len(ours):
            beside[:] = gated[len(ours) :]
        return with_replaced(output, ours[: len(gated)], gated[: len(ours)])


_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_kept: list[bool] = []  # whether torch.compile let buffers be before the first attachment


def _keep_buffers() -> None:
    """Let compiled critics be replayed.

    The shielded gate runs a critic's backward twice, and torch.compile by default lets the first
    run overwrite what was saved. What was compiled before is compiled anew: its backward would
    read garbage.
    """
    before = keep_buffers(True) if not _kept else None
    if before is None:
        return
    _kept.append(before)
    if not before and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
