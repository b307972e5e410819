"""One backward pass of a script beside the paper's literal formula, for `topk check`.

A pass that goes through a gate runs three times on the same graph, without a second forward, so
BatchNorm, spectral norm and the random state stay as they are:

    plain     the gates only listen: the gradient without top-k, and what each gate received
    the loop's own
    literal   in place of each gate the formula, its rows picked by a sort in plain Python

Hooks that the script put on tensors run in all three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from topk_plugin.check.backward import (
    Answer,
    Backward,
    dense,
    graph_of,
    same_bits,
    unchanged,
)
from topk_plugin.check.formula import (
    BOUNDS,
    asked_direction,
    brief,
    literal_gradient,
    norm2,
    relative,
    sorted_rows,
)
from topk_plugin.check.kept_loss import LossFinding, bound_of, differences, loss_finding
from topk_plugin.check.tape import Tape, Unrepeatable
from topk_plugin.core.choice import BALLOT, GateState, Ranked
from topk_plugin.core.contest import Contestant
from topk_plugin.core.coupling import coupling_of_gates, kind_of, ranking_of
from topk_plugin.core.line import AnyRanked
from topk_plugin.core.ranking import kept_rows, order_of
from topk_plugin.core.schedule import k_of
from topk_plugin.core.score_gate import FollowGate, ScoreGate, SortedGate
from topk_plugin.core.shielded_gate import Mode
from topk_plugin.errors import ConfigError
from topk_plugin.topk import TopK


@dataclass(eq=False)
class Gated:
    """One gate in one backward pass: what it received, and what the formula makes of it."""

    mode: Mode
    ranking: Tensor  # (B,)
    dtypes: set[torch.dtype]  # of the heads' gradients
    heads: int
    follow: bool  # what is no head loses the dropped rows, too
    beside: int  # outputs, the last ones, that are of samples which are not ranked
    ballot: int
    saturated: bool  # no row got a gradient
    kept: list[bool]
    weight: float
    mean: bool
    chosen: bool  # by a plugin
    off: int | None = None  # rows that the gate kept or dropped otherwise

    @property
    def batch(self) -> int:
        return len(self.kept)

    @property
    def k(self) -> int:
        return sum(self.kept)


def observed(node: Any, gradients: tuple[Tensor | None, ...], votes: float) -> Gated | None:
    """What a gate has to do with ``gradients``; None where it has to leave them alone.

    Args:
        votes: of line A's gates earlier in this backward.
    """
    beside = 0
    if kind_of(node) is ScoreGate:
        (ranking,), state = node.saved_tensors, GateState(*node.state)
        # what is in the inbox has not reached the vote yet
        state = state._replace(low=state.low - node.inbox[BALLOT])
        ranked: AnyRanked = Ranked(ranking, state, node.weigh == "mean", node.select)
        heads, follow = gradients[: node.heads], True
        mode: Mode = "observe" if node.weigh == "none" else "score"
    elif kind_of(node) is SortedGate:
        ranked, heads, follow = node.ranked, gradients[: node.heads], True
        mode = "score" if node.masks else "observe"
    else:
        call = node.call
        ranked, heads, follow, mode = call.ranked, gradients[: node.scores], call.follow, call.mode
        votes, beside = 0.0, call.beside
        if not call.reached() and not (call.stops() and call.sent_on()):
            return None
    given = [g for g in heads if g is not None]
    if not given:
        return None
    if isinstance(ranked, Contestant):
        raise ConfigError(
            'topk check: found scope="global" over several ranks, or accumulate(); expected rows '
            "of one batch that compete among themselves, which is what it audits"
        )
    ranking = order_of(ranked.ranking, heads)
    batch = len(ranking)
    rows = torch.stack([g.double().reshape(batch, -1).sum(1) for g in given]).sum(0).tolist()
    ballot = asked_direction(rows)
    sign = ranked.direction(votes) or ballot or 1.0
    k = k_of(ranked.fraction, batch)
    return Gated(
        mode=mode,
        ranking=ranking,
        dtypes={g.dtype for g in given},
        heads=len(heads),
        follow=follow,
        beside=beside,
        ballot=ballot,
        saturated=not any(rows),
        kept=sorted_rows(ranking.tolist(), k, math.copysign(1.0, sign)),
        weight=batch / k if ranked.mean else 1.0,
        mean=ranked.mean,
        chosen=ranked.select is not kept_rows,
    )


class Deviation(NamedTuple):
    """Squared norms for one leaf."""

    error: float  # of what the loop's own backward gave
    expected: float
    changed: float  # between the gradient with top-k and without
    plain: float  # without top-k
    noise: float = 0.0  # between two runs of the formula


@dataclass(eq=False)
class Pass:
    """One backward pass of the script that went through a gate."""

    rankings: list[Tensor]  # of its gates, which tell the step that counts them
    gates: list[Gated] = field(default_factory=list)  # that received a gradient
    leaves: dict[int, Deviation] = field(default_factory=dict)  # by id
    bound: float = 0.0
    dtype: str = ""
    untouched: bool | None = None  # what is the critic's under a shield, as without top-k
    exactly: bool = True  # ... bit by bit; else this device gives no gradient twice
    reason: str | None = None  # why no gradient was compared
    critic: bool = False  # of a critic step, as far as it is known
    losses: list[LossFinding] = field(default_factory=list)  # on the kept scores alone

    def error(self, owned: set[int]) -> float:
        """Of the leaves that the generator's optimizer owns, or of all others if larger."""
        return max(self._relative("error", part) for part in self._parts(owned))

    def noise(self, owned: set[int]) -> float:
        """Of the device, for the same leaves; 0 where it was not asked for."""
        return max(self._relative("noise", part) for part in self._parts(owned))

    def changed(self, owned: set[int]) -> float:
        """By top-k, for the leaves that the generator's optimizer owns; of the larger gradient."""
        owns, others = self._parts(owned)
        return self._relative("changed", owns or others, "plain")

    def _parts(self, owned: set[int]) -> tuple[list[Deviation], list[Deviation]]:
        mine = [d for leaf, d in self.leaves.items() if leaf in owned]
        return mine, [d for leaf, d in self.leaves.items() if leaf not in owned]

    @staticmethod
    def _relative(what: str, part: list[Deviation], *also: str) -> float:
        total = {name: sum(getattr(d, name) for d in part) for name in (what, "expected", *also)}
        whole = max(total[name] for name in ("expected", *also))
        return relative(math.sqrt(total[what]), math.sqrt(whole))


def _off(after: Tensor, had: Tensor | None, want: Tensor) -> Tensor:
    """How far a leaf's gradient is from ``want``, added to what it ``had``."""
    if had is None:
        return after.double() - want.double()
    # what was there may be much larger, and its last bit then hides what came
    off = (after - (had + want)).double().abs()
    return (off - torch.finfo(after.dtype).eps * after.double().abs()).clamp(min=0)


def audited(
    backward: Backward, original: Callable[..., Any], topk: TopK, tape: Tape | None = None
) -> Pass:
    """Run the script's ``backward``, and audit it.

    Args:
        tape: has what became of the gated scores, where the loss is to be compared too.
    """
    result = Pass([ranking_of(node) for node in backward.gates])
    seen: dict[Any, Gated] = {}
    received: dict[Any, tuple[Tensor | None, ...]] = {}  # by the heads, without top-k

    def listen(node: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        if kind_of(node) is FollowGate:
            return gradients
        of_line = (ScoreGate, SortedGate)
        line = [g.ballot for other, g in seen.items() if kind_of(other) in of_line]
        found = observed(node, gradients, sum(line))
        if found is not None:
            seen[node] = found
            received[node] = gradients[: found.heads]
        return gradients

    def literal(nodes: set[Any]) -> Answer:
        def answer(node: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            if kind_of(node) is FollowGate:
                found = (i for n, i in seen.items() if n in nodes and _ranks(i, node))
                it, heads = next(found, None), 0
            else:
                it = seen[node] if node in nodes else None
                heads = 0 if it is None else it.heads
            if it is None:
                return gradients
            followers = range(heads, len(gradients) - it.beside) if it.follow else ()
            return tuple(
                literal_gradient(g, it.kept, it.weight)
                if g is not None and (i < heads or (i in followers and g.shape[:1] == (it.batch,)))
                else g
                for i, g in enumerate(gradients)
            )

        return answer

    try:
        plain = backward.dry(listen)
    except Exception as error:  # the script's own graph: it cannot be run twice, or not at all
        result.reason = brief(error)
        original(*backward.bound.args, **backward.bound.kwargs)
        return result
    before = [None if p.grad is None else dense(p.grad).clone() for p in backward.leaves]
    backward.run(original)
    result.rankings = [ranking_of(node) for node in backward.gates]
    for node, it in seen.items():
        it.ranking = ranking_of(node)
    result.gates = list(seen.values())
    _compare_rows(result.gates, topk)
    if tape is not None:
        name = coupling_of_gates(backward.roots)[0]
        for node, it in seen.items():
            if it.mode != "observe" and not it.saturated:
                result.losses.append(
                    _on_kept_scores(tape, backward, node, it, received[node], name)
                )
    if ranks() > 1:
        result.reason = "gradients are averaged over ranks"
        return result

    scored = {node for node, it in seen.items() if it.mode == "score"}
    shielded = {node for node, it in seen.items() if it.mode == "shielded"}
    expected = backward.dry(literal(scored | shielded)) if scored or shielded else plain
    beside = expected
    if shielded:  # what does not lie behind the critic's input
        beside = backward.dry(literal(scored)) if scored else plain
    behind = graph_of(source for node in shielded for source in node.call.sources)[0].keys()

    spared = []  # leaves a shield has to leave as they were
    dtypes = {dtype for it in result.gates for dtype in it.dtypes}
    for place, leaf in enumerate(backward.leaves):
        want = expected[place] if id(leaf) in behind else beside[place]
        if want is None and leaf.grad is None:
            continue
        if leaf.grad is None:
            result.reason = "a gradient was gone after the backward"
            return result
        dtypes.add(leaf.dtype)
        after, had = dense(leaf.grad).detach(), before[place]
        want = torch.zeros_like(after) if want is None else want
        base = plain[place]
        base = torch.zeros_like(after) if base is None else base
        if not want.isfinite().all():
            result.reason = "a gradient is not finite"
            return result
        result.leaves[id(leaf)] = Deviation(
            norm2(_off(after, had, want)),
            norm2(want),
            norm2(base.double() - want.double()),
            norm2(base),
        )
        if shielded and not scored and id(leaf) not in behind:
            spared.append((place, same_bits(after, base if had is None else had + base)))
    _ask_device(result, backward, expected, literal, scored, shielded)
    coarsest = max(dtypes, key=lambda dtype: BOUNDS.get(dtype, BOUNDS[torch.bfloat16]))
    result.bound = BOUNDS.get(coarsest, BOUNDS[torch.bfloat16])
    result.dtype = str(coarsest).removeprefix("torch.")
    if spared:
        result.untouched = all(same for _, same in spared)
        if not result.untouched:
            _allow_for_device(result, backward, plain, spared)
    return result


def _on_kept_scores(
    tape: Tape,
    backward: Backward,
    node: Any,
    it: Gated,
    received: Sequence[Tensor | None],
    name: str | None,
) -> LossFinding:
    """The loss of the scores that one gate keeps, beside what the gate keeps of the loss."""
    kept = torch.tensor(it.kept, device=it.ranking.device)
    if it.beside:
        return LossFinding(reason="the scores are joined with those of other samples")
    try:
        again = tape.gradient(node, backward.given)
        gradients = [
            torch.zeros_like(a) if g is None else g for g, a in zip(received, again, strict=True)
        ]
        error = differences(again, gradients, torch.ones_like(kept))["sum"]
        if error > bound_of(gradients):
            raise Unrepeatable("what was done with the scores gave another gradient once more")
        found = tape.gradient(node, backward.given, kept)
    except Exception as error:  # also the script's own code, on what it never had before
        reason = str(error) if isinstance(error, Unrepeatable) else brief(error)
        return LossFinding(reason=reason)
    divides = tape.divides_by_rows(node)
    return loss_finding(found, gradients, kept, "mean" if it.mean else "sum", divides, name)


def _ask_device(
    result: Pass,
    backward: Backward,
    expected: list[Tensor | None],
    literal: Callable[[set[Any]], Answer],
    scored: set[Any],
    shielded: set[Any],
) -> None:
    """How much the formula's gradient differs from itself, where the loop's differs from it.

    CUDA's convolutions add up in another order each time, and rounding to TF32 makes more of it.
    """
    strictest = min(BOUNDS.values())
    if all(d.error <= strictest**2 * d.expected for d in result.leaves.values()):
        return
    again = backward.dry(literal(scored | shielded)) if scored or shielded else expected
    for leaf, one, other in zip(backward.leaves, expected, again, strict=True):
        if id(leaf) in result.leaves and one is not None and other is not None:
            noise = norm2(one.double() - other.double())
            result.leaves[id(leaf)] = result.leaves[id(leaf)]._replace(noise=noise)


def ranks() -> int:
    """World size."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _allow_for_device(
    result: Pass, backward: Backward, plain: list[Tensor | None], spared: list[tuple[int, bool]]
) -> None:
    """Some devices do not add up in the same order twice: then rounding is no touch."""
    again = backward.dry(unchanged)
    pairs = [(plain[place], again[place]) for place, _ in spared]
    if any(a is not None and b is not None and not same_bits(a, b) for a, b in pairs):
        result.exactly = False
        found = [result.leaves[id(backward.leaves[place])] for place, _ in spared]
        error = math.sqrt(sum(d.error for d in found))
        result.untouched = (
            relative(error, math.sqrt(sum(d.expected for d in found))) <= result.bound
        )


def _ranks(it: Gated, node: Any) -> bool:
    return it.ranking is node.followed.ranking


def _compare_rows(gates: list[Gated], topk: TopK) -> None:
    """The masks that the gates formed, beside those of the sort; a plugin's become the formula's.

    Before an optimizer steps: the ledger still holds what arrived.
    """
    ledger = topk.ledger
    choices = [*ledger.line, *(arrival.choice for arrival in ledger.pending)]
    for it in gates:
        kept = next((c.kept.tolist() for c in choices if c.scores is it.ranking), None)
        if kept is None:
            it.off = it.batch - it.k  # no gate acted
        elif it.chosen:
            it.kept, it.off = kept, 0
            it.weight = it.batch / max(1, it.k) if it.mean else 1.0
        else:
            it.off = sum(a != b for a, b in zip(kept, it.kept, strict=True))
