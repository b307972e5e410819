"""How one call of an attached critic is gated: decided before the critic runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from topk_plugin.core.parameters import Owned
from topk_plugin.core.shielded_gate import Mode
from topk_plugin.core.training import Training
from topk_plugin.loop.generator_graph import (
    generated_rows,
    generator_test,
    parameters_upstream,
)
from topk_plugin.topk import TopK

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""What labels may be of."""


class Plan(NamedTuple):
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
    audit: bool  # it is looked at what the loss reads
    rehearsed: bool  # k = B: the shield goes through its motions, and nothing is masked
    frozen: bool  # no parameter of the critic's gets a gradient
    masks: bool  # in a step of the critic's it would mask that one's own gradient
    labels: Tensor | None  # (B,) integers beside the samples
    rows: slice | None  # of the batch that are the generator's; None: all

    def of_rows(self) -> Plan:
        """The same for those alone."""
        labels = self.labels if self.rows is None or self.labels is None else self.labels[self.rows]
        return self._replace(rows=None, labels=labels)


def planned(
    leaves: Sequence[Any], critic: nn.Module, parameters: Owned, generator: Owned | None, topk: TopK
) -> Plan | None:
    """How a call is gated; None where none of its arguments is the generator's.

    Args:
        leaves: of the arguments.
        parameters: the critic's.
        generator: the generator's, if it is known.
    """
    settings = topk.config
    critic_ids, frozen = parameters.ids, parameters.frozen
    mode: Mode = "shielded"
    if settings.gate == "score" or (settings.gate == "auto" and (topk.ledger.is_marked or frozen)):
        mode = "score"
    accepts = generator_test(critic_ids, generator.ids if generator else None, topk.ledger)
    # the walk ends early if the generator is known and nothing else matters
    whole = generator is None or (mode == "shielded" and topk.trainings.any_drops)
    places: list[int] = []
    node, upstream = None, frozenset[int]()
    for place, leaf in enumerate(leaves):
        if not (isinstance(leaf, Tensor) and leaf.grad_fn is not None and leaf.dim()):
            continue
        if not len(leaf) and not topk.scope.is_shared:  # other ranks wait for one that has no rows
            continue
        if places and leaf.shape[0] != leaves[places[0]].shape[0]:
            continue
        found, behind = parameters_upstream(leaf.grad_fn, accepts, topk.ledger, whole)
        if found is not None:
            places.append(place)
            node = node or found
            upstream |= behind
    if node is None:
        return None
    of_generator: Set[int] = upstream - critic_ids - topk.ledger.of_critic
    if generator is not None:
        of_generator = generator.ids
    training = topk.trainings.of(of_generator, critic)
    audit = training.audit.goes_on
    # while k = B nothing is masked, but if k is to fall, what cannot be is told now
    observe = training.progress.fraction == 1
    falls = not observe or (settings.gamma < 1 and settings.nu < 1)
    if not falls:
        mode = "observe"
    learned = topk.ledger.of_critic if topk.ledger.undetached else set()
    unshielded = mode == "shielded" and not upstream.isdisjoint(critic_ids | learned)
    if unshielded:
        # a masked gradient would reach the critic from behind: TopK objects if a generator
        # step turns out to depend on it
        mode = "observe"
    rehearsed = False
    if mode == "shielded" and observe:
        mode, rehearsed = "observe", audit
    masks = settings.gate == "score" and not topk.ledger.is_marked and not frozen
    return Plan(
        mode, places, node, upstream, critic_ids, accepts, topk.ledger.is_marked, unshielded,
        training, audit, rehearsed, frozen, masks, _labels(leaves, leaves[places[0]].shape[0]),
        generated_rows(leaves[places[0]], accepts, topk.ledger),
    )  # fmt: skip


def _labels(leaves: Sequence[Any], batch: int) -> Tensor | None:
    """The classes of ``batch`` samples, where they are among the critic's arguments as integers."""
    for leaf in leaves if len(leaves) > 1 else ():
        if isinstance(leaf, Tensor) and leaf.shape == (batch,) and leaf.dtype in INTEGERS:
            return leaf
    return None
