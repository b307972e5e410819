"""A critic's output for a batch that holds generated samples among others, which do not compete."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topk_plugin.core.trees import flatten


class Mixed:
    """Of one call.

    Args:
        output: whatever the critic returned.
        rows: of the batch that are generated.
        batch: B.
    """

    def __init__(self, output: Any, rows: slice, batch: int) -> None:
        self._leaves, self._rebuild = flatten(output)
        self._rows, self._behind = rows, slice(rows.stop, batch)
        # by id: a tensor may be there twice, and then its part is, too
        self._whole = {
            id(leaf): leaf
            for leaf in self._leaves
            if isinstance(leaf, Tensor) and leaf.shape[:1] == (batch,)
        }

    @property
    def is_one(self) -> bool:
        """Some of the output has a row for each sample."""
        return bool(self._whole)

    def generated(self) -> Any:
        """The output for the generated samples alone."""
        parts = {number: leaf[self._rows] for number, leaf in self._whole.items()}
        return self._rebuild([parts.get(id(leaf), leaf) for leaf in self._leaves])

    def others(self) -> list[Tensor]:
        """The differentiable rows of other samples: of each output those before, those behind."""
        ends = slice(0, self._rows.start), self._behind
        return [leaf[end] for leaf in self._whole.values() if leaf.requires_grad for end in ends]

    def joined(self, generated: Any, others: list[Tensor]) -> Any:
        """The whole output again, of :meth:`generated` and :meth:`others`, perhaps gated."""
        parts = {id(old): new for old, new in zip(self._leaves, flatten(generated)[0], strict=True)}
        ends = iter(others)
        joined = {
            number: torch.cat([next(ends), parts[number], next(ends)])
            for number, leaf in self._whole.items()
            if leaf.requires_grad
        }
        return self._rebuild([joined.get(id(leaf), leaf) for leaf in self._leaves])
