"""Losses that read the scores of a part of the rows, which alone compete then.

A critic may be called with more rows than the generator's loss reads: samples that were joined with
real ones, rotated for another task, or picked by a mask. Top-k by hand takes the scores that the
loss gets. Rows that it does not read get exactly no gradient, in each step the same ones; so do
rows of a loss that saturates, but these are other ones in each step, or lie beyond all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.choice import Ranked
from topk_plugin.core.contest import Contestant
from topk_plugin.core.ranking import plain
from topk_plugin.core.sorted_choice import AnyChoice, Sorted
from topk_plugin.errors import ConfigError

FEWEST = 2
"""Rows that are not read, at least: one alone may be the same one twice by chance."""


def rows_read(gradients: Sequence[Tensor | None], batch: int) -> Tensor:
    """(B,) bool: rows to which a loss sends any gradient, by any of its scores.

    Args:
        gradients: of the loss by each of several heads, with B rows; not all None.
    """
    given = [(g.detach().reshape(batch, -1) != 0).any(dim=1) for g in gradients if g is not None]
    return given[0] if len(given) == 1 else torch.stack(given).any(dim=0)


def saturates(scores: Tensor, gradient: Tensor) -> Tensor:
    """0-d bool: all numbers without a gradient lie on one side of those with one.

    Args:
        scores, gradient: of one head, of one shape.
    """
    without, infinite = gradient == 0, torch.inf
    highest = [scores.masked_fill(rows, -infinite).max() for rows in (~without, without)]
    lowest = [scores.masked_fill(rows, infinite).min() for rows in (~without, without)]
    return (highest[0] <= lowest[1]) | (highest[1] <= lowest[0])


class Parts:
    """Whether the losses of a training leave rows out, as its first steps show."""

    def __init__(self) -> None:
        self.found = False  # rows that are not read do not compete
        # by B and device: (B + 1,) bool, rows read and saturates()
        self._seen: dict[tuple[int, torch.device], list[Tensor]] = {}

    def looks(
        self, heads: Sequence[Tensor], batch: int
    ) -> Callable[[Sequence[Tensor | None]], None]:
        """What is to be told the gradients of a call's ``heads``, and of its other outputs."""
        scores = [plain(head.detach()) for head in heads]

        def look(gradients: Sequence[Tensor | None]) -> None:
            of_heads = gradients[: len(scores)]
            pairs = [(s, plain(g)) for s, g in zip(scores, of_heads, strict=True) if g is not None]
            beyond = torch.stack([saturates(score, g) for score, g in pairs]).all()
            seen = torch.cat([rows_read(of_heads, batch), beyond[None]])
            self._seen.setdefault((batch, seen.device), []).append(seen)

        return look

    @property
    def told(self) -> bool:
        """What was seen so far shows such rows (the device is waited for)."""
        return any(_same_rows(torch.stack(seen).tolist()) for seen in self._seen.values())

    def decide(self, last: bool) -> None:
        """An epoch ended, before k falls (the device is waited for).

        Args:
            last: the steps that are looked at have ended.
        """
        self.found |= self.told
        if last:
            self._seen.clear()


def _same_rows(seen: list[list[bool]]) -> bool:
    """Whether calls with as many rows each leave the same ones out, for no reason of their scores.

    Args:
        seen: of each call which rows were read, and whether the others saturate.
    """
    part = [one for one in seen if 0 < sum(one[:-1]) <= len(one) - 1 - FEWEST]
    same = {tuple(one[:-1]) for one in part}
    return len(part) > 1 and len(same) == 1 and not all(one[-1] for one in part)


class PartChoice(NamedTuple):
    """What is kept of a batch of which some rows compete; the others pass."""

    choice: AnyChoice  # of those rows
    rows: Tensor  # (N,) where they are
    batch: int  # B

    @property
    def kept(self) -> Tensor:
        """(B,) bool."""
        every = torch.ones(self.batch, dtype=torch.bool, device=self.rows.device)
        return every.index_copy(0, self.rows, self.choice.kept)

    def keep(self, gradient: Tensor) -> Tensor:
        """``gradient`` (B, ...) with the dropped rows zero and the kept rows weighted."""
        kept = self.choice.keep(gradient.index_select(0, self.rows))
        return gradient.index_copy(0, self.rows, kept)


def those_read(
    choice: AnyChoice | PartChoice, labels: Tensor | None
) -> tuple[AnyChoice, Tensor | None]:
    """What was chosen of the rows that compete, and their ``labels``, of (B,) or None."""
    if not isinstance(choice, PartChoice):
        return choice, labels
    return choice.choice, None if labels is None else labels.index_select(0, choice.rows)


class PartRanked:
    """Scores of a batch, of which those compete that the loss reads.

    Args:
        ranked: what says which rows are kept where all are read.

    Raises:
        ConfigError: these rows compete with others than those of their batch.
    """

    def __init__(self, ranked: Ranked | Sorted | Contestant) -> None:
        if isinstance(ranked, Contestant):
            raise ConfigError(
                'scope="global", or accumulate(): found a loss that reads the scores of a part of '
                "the critic's batch, expected one that reads all, since other ranks, or other "
                "micro-batches, cannot know which rows of this one compete. Gate the scores that "
                "the loss gets, topk(scores), or call the critic with those samples alone."
            )
        self.ranked, self.batch = ranked, ranked.ranking.shape[-1]

    @property
    def order(self) -> Tensor:
        """(B,) that would rank all rows."""
        return self.ranked.order

    def choose(self, gradients: Sequence[Tensor | None]) -> AnyChoice | PartChoice:
        """What a backward keeps in which the heads received ``gradients``, not all None (the device
        is waited for)."""
        rows = rows_read(gradients, self.batch).nonzero().flatten()
        if not 0 < len(rows) < self.batch:
            return self.ranked.choose(gradients)
        sent = [None if g is None else g.index_select(0, rows) for g in gradients]
        return PartChoice(self.ranked.of(rows).choose(sent), rows, self.batch)
