"""Looks at the loss of the first generator steps: does it couple the rows of a batch?

A probe costs a walk over the loss's graph in these steps and nothing afterwards; it runs nothing
and waits for no device.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topk_plugin.compat import GradientEdge
from topk_plugin.core.coupling import coupling_of_gates, ranking_of
from topk_plugin.hooks import Selection
from topk_plugin.monkeypatch import PatchLog, stands_in
from topk_plugin.topk import TopK

PROBED_STEPS = 2
"""Generator steps whose loss is looked at."""

REMEMBERED = 64
"""Backward passes with coupled rows, of which no optimizer has said yet whose they are."""


class CouplingProbe:
    """Watches ``torch.autograd.backward`` during the next generator steps.

    Args:
        topk: whose generator steps.
        tell: called once with the name of the operation that couples rows, where one does.
    """

    def __init__(self, topk: TopK, tell: Callable[[str], None]) -> None:
        self.topk, self.tell = topk, tell
        self._left = 0  # generator steps to come
        self._log: PatchLog | None = None  # while it watches
        self._found: deque[tuple[str, list[Any]]] = deque(maxlen=REMEMBERED)

    def start(self) -> None:
        """Watch from now on; started again, it watches as many steps anew."""
        self._left = PROBED_STEPS
        if self._log is None:
            self.topk.observers.append(self._step_counted)
            self._log = self._watched()

    def stop(self) -> None:
        """Leave everything as it was; twice is fine."""
        if self._log is not None:
            self._log.undo()
            self._log = None
            self._found.clear()
            self.topk.observers.remove(self._step_counted)

    def _watched(self) -> PatchLog:
        original, log, alive = torch.autograd.backward, PatchLog(), weakref.ref(self)

        @stands_in(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            probe = alive()
            if log.active and probe is not None:  # somebody may have kept it
                probe._look(tensors)
            return original(tensors, *args, **kwargs)

        log.replace(torch.autograd, "backward", backward)
        weakref.finalize(self, log.undo).atexit = False  # what was attached and forgotten is gone
        return log

    def _look(self, tensors: Any) -> None:
        several = [tensors] if isinstance(tensors, Tensor | GradientEdge) else list(tensors)
        roots = [one.node if isinstance(one, GradientEdge) else one.grad_fn for one in several]
        name, gates = coupling_of_gates(roots)
        if name is not None:
            self._found.append((name, gates))

    def _step_counted(self, step: Selection) -> None:
        counted = {id(call.scores) for call in step.calls}
        found = [
            name for name, gates in self._found if any(id(ranking_of(g)) in counted for g in gates)
        ]
        name = found[0] if found else None
        self._found.clear()
        self._left -= 1
        if name is not None or not self._left:
            self.stop()
        if name is not None:
            self.tell(name)


def coupled_rows(name: str) -> str:
    """What is said of a loss in which the operation ``name`` couples rows."""
    return (
        f"the loss couples the rows of a batch ({name}): without the gradient of the dropped rows "
        "it is not the paper's loss of the kept scores alone"
    )
