"""The two gates: identities in the forward pass that keep k rows of the gradient in the backward.

``ScoreGate`` sits on the critic's scores and masks what passes through it (paper, section 3.3:
``generator_loss(topk(scores))``). The shielded gate (``gate_outputs`` after ``gate_inputs``)
sends the masked gradient to the critic's input only: whatever the critic's parameters receive is
what they receive without the plugin, so it may stand in a critic step too.

Nothing here branches on a tensor or moves a number to the host. k is computed on the device from
a 0-d tensor, so one compiled or captured graph serves all epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from topk_plugin.errors import GeneratorStepUnknown
from topk_plugin.ranking import ballot, kept_rows

BALLOT, CALLS, ROWS, KEPT, NONFINITE, KEPT_SUM, DROPPED_SUM, THRESHOLD = range(8)
"""What a tally counts; each entry adds up over calls."""
TALLY_SIZE = 8

Mode = Literal["observe", "score", "shielded"]

Select = Callable[[Tensor, Tensor], Tensor]


class GateState(NamedTuple):
    """What a gate reads at backward time; all 0-d float64 on the scores' device."""

    fraction: Tensor  # of the batch that is kept, in (0, 1]
    decided: Tensor  # direction: 1 high, -1 low, 0 still voting
    vote: Tensor  # sum of the generator steps' ballots so far


class Choice(NamedTuple):
    """What one backward pass keeps."""

    kept: Tensor  # (B,) bool
    scale: Tensor  # 0-d float64, weight of a kept row
    scores: Tensor  # (B,) that were ranked
    tally: Tensor  # (TALLY_SIZE,) float64


def choose(
    ranking: Tensor,
    row_gradient: Tensor,
    state: GateState,
    mean: bool,
    select: Select = kept_rows,
) -> Choice:
    """Rank a batch and say which rows' gradients pass, and with what weight.

    Args:
        ranking: (B,) scores.
        row_gradient: (B,) gradient of the loss by each row's score; only its signs are used.
        state: present fraction and direction.
        mean: kept rows weigh B/k (a mean over the batch becomes a mean over k rows, paper section
            3.3), else 1 (the sum over k rows of section 3.1).
        select: the mask (B,) of the rows to keep, of scores where higher is more realistic and k.
    """
    batch = ranking.shape[0]
    # schedule.k_of on the device, in the same precision
    k = torch.floor(state.fraction * batch + 1e-9).clamp(min=1)
    vote = ballot(row_gradient)
    # what is decided beats the votes so far (whole numbers), which beat this call's own ballot
    direction = torch.add(torch.add(vote, state.vote, alpha=2), state.decided, alpha=1e9)
    sign = (direction >= 0) * 2.0 - 1.0
    kept = select(ranking * sign.to(ranking.dtype), k)
    if select is not kept_rows:  # a plugin's: it may keep more or fewer than k
        kept = kept | (k == batch)
        k = kept.sum().to(torch.float64)
    # of no rows infinite, and keep() takes it for none
    scale = batch / k if mean else torch.ones_like(k)

    # few operations: on a small network every one of them shows
    wide = ranking.to(torch.float64)
    oriented = wide * sign
    kept_sum = torch.where(kept, wide, 0.0).sum()
    tally = torch.stack(
        [
            vote,
            torch.ones_like(k),
            torch.full_like(k, batch),
            k,
            (wide - wide != 0).sum().to(torch.float64),  # of NaN and the infinities NaN
            kept_sum,
            wide.sum() - kept_sum,
            torch.where(kept, oriented, torch.inf).min() * sign,
        ]
    )
    return Choice(kept, scale, ranking, tally)


def keep(gradient: Tensor, choice: Choice) -> Tensor:
    """``gradient`` (B, ...) with the dropped rows zero and the kept rows times ``scale``."""
    batch = choice.kept.shape[0]
    # () is the score of a batch of one
    rows = choice.kept.reshape([batch] + [1] * (gradient.dim() - 1) if gradient.dim() else [])
    # B/k in 16 bits is off by up to 4e-3: multiply in float32 at least, then round once
    wide = torch.promote_types(gradient.dtype, torch.float32)
    scaled = (gradient.to(wide) * choice.scale.to(wide)).to(gradient.dtype)
    # where, not a product: 0 * NaN of a dropped row is NaN
    return torch.where(rows, scaled, 0.0)


def keep_companion(gradient: Tensor | None, choice: Choice) -> Tensor | None:
    """:func:`keep` for an output that is no score: only if it has a row for each sample."""
    if gradient is None or gradient.shape[:1] != choice.kept.shape:
        return gradient
    return keep(gradient, choice)


def row_gradient(gradients: Sequence[Tensor | None], batch: int) -> Tensor:
    """Gradient of the loss by each row's score, (B,): summed over heads and patches."""
    rows = [g.reshape(batch, -1).sum(dim=1) for g in gradients if g is not None]
    return rows[0] if len(rows) == 1 else torch.stack([r.double() for r in rows]).sum(dim=0)


class ScoreGate(torch.autograd.Function):
    """Line A's gate: ``apply(weigh, select, arrived, inbox, heads, ranking, *state, *tensors)``.

    ``weigh`` is "mean" or "sum" (see :func:`choose`), or "none" to count and vote only. Of the
    tensors (B, ...) the first ``heads`` are scores, whose gradient votes; the rest are companions,
    which follow the kept rows. Returns the tensors unchanged, as a tuple. The backward adds its
    tally to ``inbox`` in place and, where Python runs, calls ``arrived``; nothing else leaves it,
    so it compiles with ``fullgraph=True``.
    """

    @staticmethod
    def forward(
        weigh: str, select: Select, arrived: Callable[[Choice], None] | None, inbox: Tensor,
        heads: int, ranking: Tensor, fraction: Tensor, decided: Tensor, vote: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        # detach shares memory but, unlike a view, may be changed in place by the loop
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.weigh, ctx.select, ctx.arrived, ctx.inbox, ctx.heads, ranking, *state = inputs[:9]
        ctx.save_for_backward(ranking)
        # not saved tensors: two calls may share them, and the first one's backward writes inbox
        ctx.state = tuple(state)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 9
        compiling = torch.compiler.is_compiling()
        heads, companions = gradients[: ctx.heads], gradients[ctx.heads :]
        # inside a gate's backward, grad mode means create_graph
        if (torch.is_grad_enabled() and not compiling) or all(g is None for g in heads):
            return nothing + gradients
        (ranking,) = ctx.saved_tensors
        fraction, decided, vote = ctx.state
        # what is in the inbox has not reached the vote yet
        state = GateState(fraction, decided, vote + ctx.inbox[BALLOT])
        rows = row_gradient(heads, ranking.shape[0])
        choice = choose(ranking, rows, state, ctx.weigh == "mean", ctx.select)
        ctx.inbox.add_(choice.tally)
        if ctx.arrived is not None and not compiling:
            ctx.arrived(choice)
        if ctx.weigh == "none":
            return nothing + gradients
        kept = tuple(None if g is None else keep(g, choice) for g in heads)
        return nothing + kept + tuple(keep_companion(g, choice) for g in companions)


class Followed:
    """A gated call, for outputs of later calls that follow its rows.

    Args:
        ranking, state, mean, select: see :func:`choose`.
        inbox: of the gate, with ballots that have not reached the vote yet.
        assumed: direction before the first ballot: 1 high, -1 low.
    """

    def __init__(
        self, ranking: Tensor, state: GateState, mean: bool, select: Select, inbox: Tensor,
        assumed: float,
    ) -> None:  # fmt: skip
        self.ranking, self.state, self.mean = ranking, state, mean
        self.inbox, self.assumed = inbox, assumed
        self._select = select
        self._mask: Tensor | None = None

    def select(self, scores: Tensor, k: Tensor) -> Tensor:
        """A plugin's selection, asked once: it may draw at random."""
        if self._mask is None:
            self._mask = self._select(scores, k)
        return self._mask

    def choice(self) -> Choice:
        """What the call keeps, as far as is known before its own backward."""
        select = kept_rows if self._select is kept_rows else self.select
        state = self.state._replace(vote=self.state.vote + self.inbox[BALLOT])
        # this backward runs before the call's own, whose ballot counts where none came before it
        rows = torch.full_like(self.ranking, -self.assumed)
        return choose(self.ranking, rows, state, self.mean, select)


class FollowGate(torch.autograd.Function):
    """``apply(followed, *tensors)``: the tensors (B, ...), which follow another call's rows."""

    @staticmethod
    def forward(ctx: Any, followed: Followed, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.followed = followed
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        # inside a gate's backward, grad mode means create_graph
        if torch.is_grad_enabled() or all(g is None for g in gradients):
            return (None, *gradients)
        choice = ctx.followed.choice()
        return (None, *(keep_companion(g, choice) for g in gradients))


class Box:
    """What the output gate of a shielded call leaves for its input gates."""

    def __init__(self) -> None:
        self.masked: list[Tensor | None] = []  # gradients by the critic's inputs
        self.plain: list[Tensor | None] = []  # the same without top-k; only where it is audited
        self.bypassed: list[Tensor] = []  # 0-d bool: the loss has another path to this input

    def take(self, index: int, gradient: Tensor) -> Tensor:
        """What goes back from input ``index``, which received ``gradient`` from the critic."""
        if not self.masked:  # no masked gradient was formed in this backward
            return gradient
        # taken once: a later backward that does not pass the scores must not find it
        masked, self.masked[index] = self.masked[index], None
        if self.plain and (plain := self.plain[index]) is not None:
            wide = plain.double()
            coarse = plain.dtype in (torch.float16, torch.bfloat16)
            error = (gradient.double() - wide).norm() / wide.norm().clamp(min=1e-300)
            self.bypassed.append(error > (5e-2 if coarse else 1e-3))
        return gradient if masked is None else masked


class GatedCall:
    """One call of an attached critic: what its gates need at backward time.

    Args:
        mode: "observe" (k = B: count and vote only), "score" or "shielded".
        ranking: (B,) detached scores.
        state: fraction and direction; read at backward time.
        mean: see :func:`choose`.
        generator_node: the gradient accumulator of a generator parameter upstream of the input.
        sources: the nodes that made the critic's inputs.
        is_generator: whether a node is the accumulator of a generator parameter.
        arrived: told the choice, on the host, when a backward went through.
        box: shared with the input gates of a shielded call, see :func:`gate_inputs`.
        audit: whether to look for a path from the critic's input to the loss that passes none of
            its outputs (an activation kept in an attribute, say): the shield would cut it off.
        select: see :func:`choose`.
        follow: outputs that are no heads lose the dropped rows' gradient too.
    """

    def __init__(
        self, mode: Mode, ranking: Tensor, state: GateState, mean: bool, generator_node: Node,
        sources: Sequence[Node], is_generator: Callable[[Node], bool],
        arrived: Callable[[Choice], None], box: Box, audit: bool = False,
        select: Select = kept_rows, follow: bool = False,
    ) -> None:  # fmt: skip
        self.mode, self.ranking, self.state, self.mean = mode, ranking, state, mean
        self.generator_node, self.arrived = generator_node, arrived
        self.sources, self.is_generator = sources, is_generator
        self.box, self.audit, self.select, self.follow = box, audit, select, follow
        self.outputs: tuple[GradientEdge, ...] = ()
        self.inputs: tuple[GradientEdge, ...] = ()

    def reached(self) -> bool:
        """Whether the running backward goes on to the generator's parameters.

        It does not for an input gradient (anomaly scores, latent optimisation): those are no
        generator steps and have to stay as they are.
        """
        if _executes(self.generator_node):
            return True
        # by other parameters only, as in a gradient by the last layer's weight: look for them
        queue, seen = list(self.sources), set(self.sources)
        while queue:
            node = queue.pop()
            if not _executes(node):
                continue
            if self.is_generator(node):
                return True
            parents = {parent for parent, _ in node.next_functions if parent is not None} - seen
            seen |= parents
            queue += parents
        return False

    def backward(self, gradients: tuple[Tensor | None, ...], scores: int) -> tuple[Any, ...]:
        """What goes back into the critic's outputs; the first ``scores`` of them are its heads."""
        self.box.masked, self.box.plain = [], []
        heads, others = gradients[:scores], gradients[scores:]
        # inside a gate's backward, grad mode means create_graph: a penalty, latent optimisation
        if torch.is_grad_enabled() or all(g is None for g in heads) or not self.reached():
            return gradients
        rows = row_gradient(heads, self.ranking.shape[0])
        choice = choose(self.ranking, rows, self.state, self.mean, self.select)
        self.arrived(choice)
        if self.mode == "observe":
            return gradients
        if self.follow:
            others = tuple(keep_companion(g, choice) for g in others)
        masked = tuple(None if g is None else keep(g, choice) for g in heads) + others
        if self.mode == "score":
            return masked
        self.box.masked = self._replay(masked)
        if self.audit:
            self.box.plain = self._replay(gradients)
        return gradients

    def _replay(self, gradients: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The gradient by the critic's inputs that ``gradients`` of its outputs give."""
        sent = [(e, g) for e, g in zip(self.outputs, gradients, strict=True) if g is not None]
        edges, values = zip(*sent, strict=True)
        try:
            return list(
                torch.autograd.grad(
                    edges, self.inputs, values, retain_graph=True, allow_unused=True
                )
            )
        except RuntimeError as error:
            raise GeneratorStepUnknown(
                "the critic's graph cannot be replayed, which top-k needs where nothing tells a "
                "generator step from a critic step (reentrant checkpointing does that). Mark the "
                "generator step by hand, `with topk.generator_step():` around its forward and "
                "backward, or use checkpoint(..., use_reentrant=False). "
                f"The replay said: {error}"
            ) from error


def _executes(node: Node) -> bool:
    """Whether the running backward runs ``node``, or stores what reaches it."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf in autograd.grad: captured, not executed
        return True


class _OutputGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: GatedCall, scores: int, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.scores = call, scores
        ctx.set_materialize_grads(False)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *ctx.call.backward(gradients, ctx.scores))


class _InputGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, box: Box, index: int, tensor: Tensor) -> Tensor:
        ctx.box, ctx.index = box, index
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.box.take(ctx.index, gradient)


def gate_inputs(tensors: Sequence[Tensor], box: Box) -> list[Tensor]:
    """Identities on the critic's inputs, whose backward gives what the output gate puts in ``box``.

    The box, not the call, is what they share: the call holds edges of the critic's graph, whose
    nodes hold these gates, and that cycle would never be collected.
    """
    return [_InputGate.apply(box, index, tensor) for index, tensor in enumerate(tensors)]


def gate_outputs(
    call: GatedCall,
    heads: Sequence[Tensor],
    others: Sequence[Tensor],
    inputs: Sequence[GradientEdge],
) -> tuple[Tensor, ...]:
    """Identities on the critic's outputs, heads first; joined, as one gradient needs them all.

    Args:
        others: differentiable outputs that are no heads; gated only if the call is shielded, or
            if they follow.
        inputs: edges of what :func:`gate_inputs` gave, if the call is shielded; taken before the
            critic ran, which may change its input in place.
    """
    together = call.mode == "shielded" or (call.mode == "score" and call.follow)
    outputs = (*heads, *others) if together else tuple(heads)
    if call.mode == "shielded":
        # edges, not tensors: no activation outlives the backward for our sake
        call.outputs = tuple(get_gradient_edge(output) for output in outputs)
        call.inputs = tuple(inputs)
    return _OutputGate.apply(call, len(heads), *outputs)
