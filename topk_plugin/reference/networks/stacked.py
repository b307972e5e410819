"""MLPs of many members in one: their weights stacked, and multiplied with ``bmm``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": lambda x: functional.leaky_relu_(x, 0.2),
    "tanh": torch.tanh_,
}


def mlp(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """M stacked MLPs: weights (M, out, in) and biases (M, out) in turns, x (M, B, in)."""
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    for i, (weight, bias) in enumerate(layers):
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        if i + 1 < len(layers):
            x = ACTIVATIONS[activation](x)
    return x
