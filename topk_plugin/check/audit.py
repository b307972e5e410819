"""Audits the first generator steps of a run; see :mod:`topk_plugin.check.literal`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils import _pytree as pytree

from topk_plugin.check.backward import Backward
from topk_plugin.check.formula import (
    LARGEST_NOISE,
    REPEATS,
    asked_direction,
    brief,
    sorted_rows,
)
from topk_plugin.check.kept_loss import LossFinding, loss_finding
from topk_plugin.check.literal import Gated, Pass, audited
from topk_plugin.check.tape import Tape, taken_down
from topk_plugin.compat import keep_buffers
from topk_plugin.core.direction import lead_of
from topk_plugin.core.score_gate import FollowGate, ScoreGate, SortedGate
from topk_plugin.core.trees import tree_leaves
from topk_plugin.hooks import Selection
from topk_plugin.monkeypatch import stands_in
from topk_plugin.seams import Seam
from topk_plugin.topk import TopK

PATIENCE = 20
"""Times the wanted steps, after which a loss that sends no gradient is no longer waited for."""


class Enough(SystemExit):
    """Ends the script: no ``except Exception`` of a loop takes it for a failed step."""


@dataclass(eq=False)
class Step:
    """One generator step that was counted."""

    number: int
    passes: list[Pass]
    error: float
    changed: float
    frozen: bool  # no gradient went anywhere else than to the generator
    noise: float  # by which this device differs from itself

    @property
    def agrees(self) -> bool:
        """Whether the error is rounding, or else what this device does to the same backward."""
        bound = max(one.bound for one in self.passes)
        return self.error <= bound or self.error <= REPEATS * min(self.noise, LARGEST_NOISE)

    @property
    def gates(self) -> list[Gated]:
        return [it for one in self.passes for it in one.gates]

    @property
    def saturated(self) -> bool:
        """No score got a gradient, so there was nothing to keep or drop."""
        return all(it.saturated for it in self.gates)

    @property
    def reasons(self) -> list[str]:
        return [one.reason for one in self.passes if one.reason]


class Audit:
    """Audits the backward passes of this process while it is entered.

    Args:
        topk: what is audited.
        seam: of a call seam the losses are audited too.
        wanted: generator steps after which the script is ended.
    """

    def __init__(self, topk: TopK, seam: Seam, wanted: int) -> None:
        self.topk, self.seam, self.wanted = topk, seam, wanted
        self.steps: list[Step] = []
        self.unaudited: list[str] = []  # of other generator steps, why
        self.of_critic: list[Pass] = []  # passes of critic steps
        self.losses: list[LossFinding] = []  # of a call seam, which sees the loss
        wraps = () if seam.adapter is None else seam.adapter.wraps
        # a loss that is gated is called again; of what a critic returns the loss is taken down
        at_loss = any(hasattr(wrap.wrapper, "argument") for wrap in wraps)
        self._tape = None if at_loss else Tape()
        self.companions: list[bool] = []  # of the critic's other outputs, whether they are gated
        self._open: list[Pass] = []  # no optimizer told yet whose they are
        self._counted: Selection | None = None
        self._busy = False
        self._undo = ExitStack()

    def __enter__(self) -> Audit:
        original = torch.autograd.backward

        @stands_in(original)
        def backward(*args: Any, **kwargs: Any) -> None:
            if self._busy:  # one within another, as reentrant checkpoints have
                return original(*args, **kwargs)
            self._busy = True
            try:
                return self._backward(original, args, kwargs)
            finally:
                self._busy = False

        def restore() -> None:
            torch.autograd.backward = original

        with ExitStack() as undo:  # what fails to begin leaves nothing behind
            # Tensor.backward, scalers and frameworks call it so
            torch.autograd.backward = backward
            undo.callback(restore)
            # compiled graphs are run more than once, which they do not allow by default
            kept = keep_buffers(True)
            undo.callback(lambda: None if kept is None else keep_buffers(kept))
            # after the ledger's own, which counts the step
            undo.callback(register_optimizer_step_post_hook(self._stepped).remove)
            self.topk.observers.append(self._count)
            undo.callback(self.topk.observers.remove, self._count)
            undo.enter_context(self.seam.audited(self._loss, self._output))
            if self._tape is not None:
                undo.enter_context(taken_down(self._tape))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        self._close()

    def _backward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
        tape = self._tape
        with nullcontext() if tape is None else tape.paused():
            backward = Backward(args, kwargs)
            if not backward.gates:
                return original(*args, **kwargs)
            result = audited(backward, original, self.topk, tape)
            if result.gates or result.reason:
                self._open.append(result)
            if tape is not None and not backward.again:
                tape.forget(backward.gates)
        return None

    def _count(self, selection: Selection) -> None:
        self._counted = selection

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._tape is not None:
            self._tape.clear()
        if self._counted is None:
            aside = {id(call.choice.scores) for call, _ in self.topk.ledger.aside}
            for one in self._open:
                one.critic |= any(id(ranking) in aside for ranking in one.rankings)
            return
        step, self._counted = self._counted, None
        counted = {id(call.scores) for call in step.calls}
        passes = [p for p in self._open if any(id(r) in counted for r in p.rankings)]
        self._open = [p for p in self._open if p not in passes]
        self._close()
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not passes:
            self.unaudited.append("its gradient came by no call of backward()")
        elif not all(one.gates for one in passes):
            self.unaudited += [str(one.reason) for one in passes if not one.gates][:1]
        else:
            self.steps.append(
                Step(
                    step.step,
                    passes,
                    max(one.error(owned) for one in passes),
                    max(one.changed(owned) for one in passes),
                    all(one.leaves.keys() <= owned for one in passes),
                    max(one.noise(owned) for one in passes),
                )
            )
        enough = max(len(self.telling), len(self.unaudited)) >= self.wanted
        if enough or len(self.steps) >= PATIENCE * self.wanted:
            raise Enough

    @property
    def telling(self) -> list[Step]:
        """The steps that show something."""
        return [step for step in self.steps if not step.saturated]

    def _close(self) -> None:
        """What is still open belongs to no generator step."""
        self.of_critic += [one for one in self._open if one.critic]
        self._open = []

    @property
    def compared(self) -> list[Step]:
        """The steps whose gradient was compared, not only their rows."""
        return [step for step in self.steps if not step.reasons]

    def _output(self, gated: Any) -> None:
        """Which tensors of a critic's output have a gate, its scores aside."""
        leaves = [x for x in tree_leaves(gated) if isinstance(x, Tensor) and x.requires_grad]
        rows = {len(leaf) for leaf in leaves if leaf.dim()}
        if len(rows) > 1 or not rows:  # what has other rows is no companion
            batch = self.topk.line.heads_of(gated, None)[0][0].shape[:1]
            leaves = [leaf for leaf in leaves if leaf.shape[:1] == batch]
        kinds = [getattr(type(leaf.grad_fn), "_forward_cls", None) for leaf in leaves]
        self.companions += [kind in (ScoreGate, SortedGate, FollowGate) for kind in kinds]

    def _loss(self, loss: Callable[[Any], Any], scores: Any) -> Any:
        gated = self.topk(scores)
        value = loss(gated)
        if gated is not scores:
            try:
                found = self._on_kept_scores(loss, scores, gated, value)
            except Exception as error:  # the loss's, on a batch of k rows
                found = LossFinding(reason=brief(error))
            if found is not None:
                self.losses.append(found)
        return value

    def _on_kept_scores(
        self, loss: Callable[[Any], Any], scores: Any, gated: Any, value: Any
    ) -> LossFinding | None:
        """The paper's line itself: ``loss(scores[kept])``; None where no score has a gradient."""
        if not (isinstance(value, Tensor) and value.numel() == 1):
            return LossFinding(reason="it returns no single number")
        if not value.requires_grad:
            return None
        heads = self.topk.line.heads_of(gated, None)[0]
        given = torch.autograd.grad(value, heads, retain_graph=True, allow_unused=True)
        read = [place for place, g in enumerate(given) if g is not None]
        if not read:
            return None
        heads, gradients = [heads[i] for i in read], [given[i] for i in read]
        batch = len(heads[0])
        rows = torch.stack([g.double().reshape(batch, -1).sum(1) for g in gradients]).sum(0)
        if not rows.any():
            return None
        order = torch.stack([h.detach().double().reshape(batch, -1).mean(1) for h in heads]).mean(0)
        state = self.topk.training.state(heads[0].device)
        ballot = asked_direction(rows.tolist())
        sign = lead_of(state.low) or ballot or 1.0
        k = self.topk.k(batch)
        mask = sorted_rows(order.tolist(), k, math.copysign(1.0, sign))
        kept = torch.tensor(mask, device=heads[0].device)

        def gather(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (batch,):
                return leaf
            return leaf.detach()[kept].requires_grad_(leaf.requires_grad)

        fewer = pytree.tree_map(gather, scores)
        devices = [heads[0].device] if heads[0].is_cuda else []
        with torch.random.fork_rng(devices=devices):
            value = loss(fewer)
        fewer_heads = self.topk.line.heads_of(fewer, None)[0]
        found = torch.autograd.grad(value, [fewer_heads[i] for i in read], materialize_grads=True)
        return loss_finding(found, gradients, kept, self.topk.config.reduction)
