"""How a step runs: as it is, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from topk_plugin import VOTING_STEPS, TopK


class Captured:
    """A CUDA graph of a step: the same kernels again, with other numbers in its inputs."""

    def __init__(self, step: Callable[..., None], inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step(*self.inputs)

    def __call__(self, *inputs: Tensor) -> None:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()


class Steps:
    """Runs the steps of a training.

    Args:
        graphs: whether as CUDA graphs, once the scores' direction is known.
    """

    def __init__(self, graphs: bool) -> None:
        self.graphs = graphs
        self.captured: dict[str, Captured] = {}
        self.begun = 0  # iteration at which this process began
        if graphs:
            self.stream = torch.cuda.Stream()

    def begin_at(self, iteration: int) -> None:
        """Training goes on from there, by optimizers whose state was replaced, not filled."""
        self.begun, self.captured = iteration, {}

    def run(self, step: Callable[..., None], topk: TopK, iteration: int, *inputs: Tensor) -> None:
        """A step with that top-k in its loss."""
        if self.graphs:
            self._run(step, topk, iteration, *inputs)
        else:
            step(*inputs)
        if topk.config.enabled:
            topk.step()  # a replayed graph runs no Python, so nothing else counts it

    def _run(self, step: Callable[..., None], topk: TopK, iteration: int, *inputs: Tensor) -> None:
        # captured once the direction is decided
        if iteration - self.begun < 3 or iteration < VOTING_STEPS:
            # on a stream of its own, so that nothing that a graph needs belongs to the usual one
            own, usual = self.stream, torch.cuda.current_stream()
            own.wait_stream(usual)
            with torch.cuda.stream(own):
                step(*inputs)
            usual.wait_stream(own)
            return
        if step.__name__ not in self.captured:
            counted = topk.epoch, topk.steps
            self.captured[step.__name__] = Captured(step, inputs)
            if topk.config.enabled:
                topk.step()  # to capture is not to train
                topk.begin_at(*counted)
        self.captured[step.__name__](*inputs)
