"""The shielded gate: the masked gradient for the generator, the untouched one for the critic.

``gate_outputs`` after ``gate_inputs`` sends the masked gradient to the critic's input only:
whatever the critic's parameters receive is what they receive without the plugin, so it may stand
in a critic step too.

What reaches the critic's input is formed by running the critic's backward once more, from the
masked gradient of its outputs. Where no row acts on another row's score, masking what reaches the
input anyway is the same and costs nothing. That is never believed, but seen: both are formed and
compared (:class:`Box`), and only then the replay is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import Node

from topk_plugin.compat import place_of, probe_of
from topk_plugin.core.choice import Ranked, keep_companion
from topk_plugin.core.contest import Contestant
from topk_plugin.core.graph import executes, is_capturing
from topk_plugin.core.parts import PartChoice, PartRanked, rows_read
from topk_plugin.core.sorted_choice import AnyChoice, Sorted
from topk_plugin.errors import GeneratorStepUnknown

Mode = Literal["observe", "score", "shielded"]


APART = 1e-4
"""Relative difference of two ways to mask that is rounding; of 16 bits COARSE_APART."""
COARSE_APART = 5e-2


class Box:
    """What the output gate of a shielded call leaves for its input gates."""

    def __init__(self) -> None:
        # of each input, whether no row of it acts on another row's score; None: to be seen
        self.apart: Sequence[bool | None] = ()
        # told the number of an input, and (2,) bool: whether it is so, and whether this call
        # could show it
        self.seen: Callable[[int, Tensor], None] = lambda index, flags: None
        self.choice: AnyChoice | PartChoice | None = (
            None  # masks the inputs, if only scores got a gradient
        )
        self._unmasked: set[int] = set()  # inputs that wait for it, where nothing was replayed
        self.masked: list[Tensor | None] = []  # gradients by the critic's inputs
        self.plain: list[Tensor | None] = []  # the same without top-k; only where it is audited
        self.bypassed: list[Tensor] = []  # 0-d bool: the loss has another path to this input
        self.looked_at = False  # it was one of the first calls, which are audited
        # 0-d bool, of a call that is looked at: its latest backward sent only zeros
        self.weighs_nothing: Tensor | None = None
        self.replaying = False  # what reaches the input gates is for their probes, if there are

    def take(self, index: int, gradient: Tensor) -> Tensor:
        """What goes back from input ``index``, which received ``gradient`` from the critic."""
        if index in self._unmasked and self.choice is not None:
            self._unmasked.remove(index)
            return self.choice.keep(gradient)
        if not self.masked:  # no masked gradient was formed in this backward
            return gradient
        # taken once: a later backward that does not pass the scores must not find it
        masked, self.masked[index] = self.masked[index], None
        if self.plain and (plain := self.plain[index]) is not None:
            wide = _wide(plain)
            coarse = plain.dtype in (torch.float16, torch.bfloat16)
            error = (_wide(gradient) - wide).norm() / wide.norm().clamp(min=1e-300)
            self.bypassed.append(error > (5e-2 if coarse else 1e-3))
        if masked is None:
            return gradient
        if self.choice is None or self.apart[index] is False:
            return masked
        here = self.choice.keep(gradient)
        if self.apart[index]:
            return here
        flags = rows_apart(masked, here, self.choice.kept)
        self.seen(index, flags)
        # the same bits as later without the replay, so that a resumed run repeats the whole one
        return torch.where(flags[0], here, masked)

    def begin(self) -> None:
        """A backward begins at the critic's outputs."""
        self.masked, self.plain, self.choice = [], [], None
        self._unmasked.clear()

    def mask_inputs(self, choice: AnyChoice | PartChoice) -> bool:
        """Whether it is enough that ``choice`` masks what reaches the inputs."""
        if not self.apart or not all(self.apart):
            return False
        self.choice, self._unmasked = choice, {*range(len(self.apart))}
        return True


def _wide(gradient: Tensor) -> Tensor:
    """In 64 bits; critics of spectra get complex numbers."""
    return gradient.to(torch.promote_types(gradient.dtype, torch.float64))


def rows_apart(replayed: Tensor, here: Tensor, kept: Tensor) -> Tensor:
    """Whether masking at an input is what masking at the outputs gives there.

    Args:
        replayed: (B, ...) gradient by the input, from masked gradients of the outputs.
        here: (B, ...) the masked gradient by the input.
        kept: (B,) bool.

    Returns:
        (2,) bool: whether dropped rows got exactly nothing, and kept ones the same; and whether
        that says anything: a row is dropped, and others got a gradient.
    """
    rows = kept.reshape([-1] + [1] * (replayed.dim() - 1))
    nothing = (torch.where(rows, 0.0, replayed) == 0).all()
    wide = _wide(replayed)
    size = wide.norm()
    coarse = replayed.dtype in (torch.float16, torch.bfloat16)
    same = (_wide(here) - wide).norm() <= (COARSE_APART if coarse else APART) * size
    told = (size > 0) & size.isfinite() & ~kept.all()
    return torch.stack([nothing & same & told, told])


AUDITED_STEPS = 2
"""Generator steps that are checked for a path around the critic's outputs."""


class PathAudit:
    """Whether the first generator steps had a path around the critic's outputs.

    While k = B nothing is masked, and yet the critic's graph is replayed, so that whatever a shield
    cannot do is known before it has to.
    """

    def __init__(self) -> None:
        self._unaudited = AUDITED_STEPS
        self._bypassed: list[Tensor] = []  # 0-d bool, not yet read
        self.masks_critic = False  # a critic's step went through a score gate

    @property
    def goes_on(self) -> bool:
        """Calls are still checked."""
        return self._unaudited > 0

    def settle(self, boxes: Sequence[Box]) -> None:
        """A generator step was counted; ``boxes`` are those of its calls."""
        if any(box.looked_at for box in boxes):
            self._unaudited -= 1
            self._bypassed += [flag for box in boxes for flag in box.bypassed]

    def require_unmasked(self) -> None:
        """Raises GeneratorStepUnknown, once, where critic steps go through a gate that masks."""
        masks, self.masks_critic = self.masks_critic, False
        if masks:
            raise GeneratorStepUnknown(
                "the gate is 'score', and the critic's own steps send fakes that are not detached: "
                "their gradient would be masked too. Leave the gate at 'auto', or mark the "
                "generator step, `with topk.generator_step():`, and put `with topk.paused():` "
                "around the critic's."
            )

    def check(self) -> None:
        """Reads what was found (the device is waited for, once).

        Raises:
            GeneratorStepUnknown: the loss reads the critic past its outputs.
        """
        bypassed = any(bool(flag) for flag in self._bypassed)
        self._bypassed.clear()
        if bypassed:
            raise GeneratorStepUnknown(
                "the generator's loss reads the critic not only through what it returns "
                "(features kept in an attribute or taken by a hook, for example), and that part "
                "is lost where nothing tells a generator step from a critic step. Mark the "
                "generator step, `with topk.generator_step():` around its forward and backward, "
                "or let the critic return what the loss reads."
            )


class GatedCall:
    """One call of an attached critic: what its gates need at backward time.

    Args:
        mode: "observe" (k = B: count and vote only), "score" or "shielded".
        ranked: its scores, and what says which of them are kept.
        generator_node: the gradient accumulator of a generator parameter upstream of the input.
        sources: the nodes that made the critic's inputs.
        is_generator: whether a node is the accumulator of a generator parameter.
        arrived: told what ``ranked`` chose, which heads got a gradient, and whether it stops at the
            samples for all that is known, on the host, when a backward went through; it must not
            hold the call, whose graph no collector would free then.
        box: shared with the input gates of a shielded call, see :func:`gate_inputs`.
        audit: whether to look for a path from the critic's input to the loss that passes none of
            its outputs (an activation kept in an attribute, say): the shield would cut it off.
        follow: outputs that are no heads lose the dropped rows' gradient too.
        sent_on: whether a gradient by the samples goes on to the generator by hand.
    """

    def __init__(
        self, mode: Mode, ranked: Ranked | Sorted | Contestant | PartRanked, generator_node: Node,
        sources: Sequence[Node], is_generator: Callable[[Node], bool],
        arrived: Callable[[Any, list[int], bool], None], box: Box,
        audit: bool = False, follow: bool = False, sent_on: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.mode, self.ranked = mode, ranked
        self.generator_node, self.arrived = generator_node, arrived
        self.sources, self.is_generator = sources, is_generator
        self.box, self.audit, self.follow, self.sent_on = box, audit, follow, sent_on
        # told what the loss sends to its outputs, heads first; where it is audited
        self.looks: Sequence[Callable[[Sequence[Tensor | None]], None]] | None = None
        # a gradient that stops at the samples is masked, too, though it is no step by itself
        self.masks_stops: Callable[[], bool] = lambda: False
        self.beside = 0  # of the outputs the last ones, which are of samples that are not ranked
        # places in the graph, not the tensors: no activation outlives the backward for our sake
        self.outputs: tuple[Any, ...] = ()
        self.inputs: tuple[Any, ...] = ()

    def reached(self) -> bool:
        """Whether the running backward goes on to the generator's parameters.

        It does not for an input gradient (anomaly scores, latent optimisation): those are no
        generator steps and have to stay as they are, but where it is :attr:`sent_on`.
        """
        if executes(self.generator_node):
            return True
        # by other parameters only, as in a gradient by the last layer's weight: look for them
        queue, seen = list(self.sources), set(self.sources)
        while queue:
            node = queue.pop()
            if not executes(node):
                continue
            if self.is_generator(node):
                return True
            parents = {parent for parent, _ in node.next_functions if parent is not None} - seen
            seen |= parents
            queue += parents
        return False

    def stops(self) -> bool:
        """Whether the running backward ends between the generator and the critic: at samples.

        One that goes on through layers of the generator is that of latents.
        """
        queue = [node for node in self.sources if executes(node)]
        seen, found = {*queue}, bool(queue)
        while queue:
            parents = [parent for parent, _ in queue.pop().next_functions if parent is not None]
            onwards = [parent for parent in parents if executes(parent)]
            if onwards and any(self.is_generator(parent) for parent in parents):
                return False
            queue += [parent for parent in onwards if parent not in seen]
            seen.update(onwards)
        return found

    def backward(self, gradients: tuple[Tensor | None, ...], scores: int) -> tuple[Any, ...]:
        """What goes back into the critic's outputs; the first ``scores`` of them are its heads."""
        self.box.begin()
        heads, others = gradients[:scores], gradients[scores:]
        here = len(others) - self.beside
        # inside a gate's backward, grad mode means create_graph: a penalty, latent optimisation
        got = [place for place, g in enumerate(heads) if g is not None]
        if torch.is_grad_enabled() or not got:
            return gradients
        reached = self.reached()
        if not reached and not self.stops():
            return gradients
        unknown = not reached and not self.sent_on()
        if unknown and isinstance(self.ranked, Contestant):
            return gradients  # other ranks need not take part, nor other micro-batches be there
        choice = self.ranked.choose(heads)
        self.arrived(choice, got, unknown)
        if unknown and not self.masks_stops():
            return gradients
        self.box.looked_at = self.audit
        if self.looks is not None:
            if not any(g is not None and is_capturing(g) for g in heads):
                self.box.weighs_nothing = ~rows_read(heads, 1).any()
            for look in self.looks:
                look((*heads, *others[:here]))
            self.looks = ()  # told once
        if self.mode == "observe":
            if self.inputs:  # rehearsed
                self.box.plain = self._replay(gradients)
                self.box.masked = [None] * len(self.inputs)
            return gradients
        # other outputs' gradients pass whole, so where they have any, masking the input is no way
        alone = self.mode == "shielded" and all(g is None for g in others)
        if alone and not self.audit and self.box.mask_inputs(choice):
            return gradients
        if self.follow:
            others = (*(keep_companion(g, choice) for g in others[:here]), *others[here:])
        masked = tuple(None if g is None else choice.keep(g) for g in heads) + others
        if self.mode == "score":
            return masked
        self.box.choice = choice if alone and self.box.apart else None
        self.box.masked = self._replay(masked)
        if self.audit:
            self.box.plain = self._replay(gradients)
        return gradients

    def _replay(self, gradients: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The gradient by the critic's inputs that ``gradients`` of its outputs give."""
        sent = [(e, g) for e, g in zip(self.outputs, gradients, strict=True) if g is not None]
        places, values = zip(*sent, strict=True)
        self.box.replaying = True
        try:
            return list(
                torch.autograd.grad(
                    places, self.inputs, values, retain_graph=True, allow_unused=True
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
        finally:
            self.box.replaying = False


class OutputGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: GatedCall, scores: int, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.scores = call, scores
        ctx.set_materialize_grads(False)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *ctx.call.backward(gradients, ctx.scores))

    @staticmethod
    def jvp(ctx: Any, call: None, scores: None, *tangents: Tensor | None) -> tuple[Any, ...]:
        return tangents


class InputGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, box: Box, index: int, probe: Tensor | None, tensor: Tensor) -> Tensor:
        ctx.box, ctx.index, ctx.probed = box, index, probe is not None
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.probed and ctx.box.replaying:
            return None, None, gradient, None
        return None, None, None, ctx.box.take(ctx.index, gradient)

    @staticmethod
    def jvp(ctx: Any, box: None, index: None, probe: None, tangent: Tensor) -> Tensor:
        return tangent


def gate_inputs(tensors: Sequence[Tensor], box: Box) -> tuple[list[Tensor], list[Any]]:
    """Identities on the critic's inputs, whose backward gives what the output gate puts in ``box``.

    The box, not the call, is what they share: the call holds places in the critic's graph, whose
    nodes hold these gates, and that cycle would never be collected.

    Returns:
        what the critic is given, and where a replay ends. These are taken now, since the critic
        may change its input in place.
    """
    probes = [probe_of(tensor) for tensor in tensors]
    pairs = enumerate(zip(probes, tensors, strict=True))
    gated = [InputGate.apply(box, index, probe, tensor) for index, (probe, tensor) in pairs]
    ends = [place_of(t) if p is None else p for p, t in zip(probes, gated, strict=True)]
    return gated, ends


def gate_outputs(
    call: GatedCall,
    heads: Sequence[Tensor],
    others: Sequence[Tensor],
    ends: Sequence[Any],
) -> tuple[Tensor, ...]:
    """Identities on the critic's outputs, heads first; joined, as one gradient needs them all.

    Args:
        others: differentiable outputs that are no heads; gated only if the call is shielded, or
            if they follow.
        ends: those of :func:`gate_inputs`, if the call is shielded or rehearsed.
    """
    follow = call.mode == "score" and call.follow
    outputs = (*heads, *others) if ends or follow or call.looks else tuple(heads)
    if ends:
        call.outputs = tuple(place_of(output) for output in outputs)
        call.inputs = tuple(ends)
    return OutputGate.apply(call, len(heads), *outputs)
