"""MLPs of many members in one: their weights stacked, and multiplied with ``bmm``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PIXELS = 32
"""Rows of a batch that stand for images where layers are convolutions; the fastest of 2 to 512."""

BLOCK = 256
"""Rows that a CPU computes at once: activations of four members then fit its caches."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": lambda x: functional.leaky_relu_(x, 0.2),
    "tanh": torch.tanh_,
}


class GroupedLinear(torch.autograd.Function):
    """M linear layers on a CPU, as a grouped 1x1 convolution with rows in the place of pixels.

    On one core oneDNN's convolutions are up to twice as fast as MKL's matrix products, but for the
    weights' gradient. x (PIXELS, M * in, B / PIXELS, 1), weights (M, out, in), biases (M, out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, _filters(weight), bias.flatten(), groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        size, by_x = len(weight), None
        if ctx.needs_input_grad[0]:
            # forward again: its layout stays that of x, which convolution_backward changes
            by_x = functional.conv2d(gradient, _filters(weight.transpose(1, 2)), groups=size)
        if not ctx.needs_input_grad[1]:
            return by_x, None, None
        rows = _rows(gradient, size)
        by_weight = torch.bmm(rows.permute(1, 2, 0), _rows(x, size).transpose(0, 1))
        return by_x, by_weight, rows.sum(dim=0)


def _filters(weight: Tensor) -> Tensor:
    return weight.reshape(-1, weight.shape[2], 1, 1)


def _pixels(x: Tensor) -> Tensor:
    """(M, B, in) as channels-last memory, in which a row's numbers lie together."""
    size, batch, wide = x.shape
    rows = x.transpose(0, 1).reshape(PIXELS, batch // PIXELS, 1, size * wide)
    return rows.permute(0, 3, 1, 2)


def _rows(pixels: Tensor, size: int) -> Tensor:
    """(B, M, in) of what :func:`_pixels` made; nothing is moved."""
    images, channels, height, _ = pixels.shape
    return pixels.permute(0, 2, 3, 1).reshape(images * height, size, channels // size)


def mlp(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """M stacked MLPs: weights (M, out, in) and biases (M, out) in turns, x (M, B, in)."""
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    size, batch, _ = x.shape
    grouped = x.device.type == "cpu" and x.dtype == torch.float32 and batch % PIXELS == 0
    if grouped and batch > BLOCK:
        parts = x.split(BLOCK, dim=1)
        return torch.cat([mlp(parameters, part, activation) for part in parts], dim=1)
    if grouped:
        x = _pixels(x)
    for i, (weight, bias) in enumerate(layers):
        if grouped:
            x = GroupedLinear.apply(x, weight, bias)
        else:
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        if i + 1 < len(layers):
            x = ACTIVATIONS[activation](x)
    return _rows(x, size).transpose(0, 1) if grouped else x
