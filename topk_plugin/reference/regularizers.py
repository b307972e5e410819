"""What keeps critics smooth and generators diverse: gradient penalty, clipping, mode seeking."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def gradient_penalty(
    critic: Callable[[Tensor, Tensor | None], Tensor],
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """How far the critic's slopes are from 1, between real and fake images.

    Gulrajani et al. (2017), equation 3 and algorithm 1, before its factor of 10.

    Args:
        critic: images (B, C, H, W) and labels to scores (B,), each of its own image alone.
        real: (B, C, H, W).
        fake: of the same shape; it gets no gradient.
        labels: (B,) of the images, for the critic.
        share: (B,) in [0, 1], how near to the fake image each point lies; None to draw them.

    Returns:
        The mean over the batch, shape (), with a graph to the critic's parameters.
    """
    if share is None:
        share = torch.rand(len(real), device=real.device, dtype=real.dtype)
    rows = share.view(-1, *[1] * (real.dim() - 1))
    between = torch.lerp(real.detach(), fake.detach().to(real), rows.to(real)).requires_grad_()
    scores = critic(between, labels)
    [slopes] = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(slopes.flatten(1), dim=1) - 1).square().mean()


@torch.no_grad()
def clip_weights_(critic: nn.Module, bound: float) -> None:
    """Clamps every parameter to [-bound, bound] (Arjovsky et al. 2017, algorithm 1)."""
    parameters: list[Tensor] = list(critic.parameters())
    torch._foreach_clamp_min_(parameters, -bound)
    torch._foreach_clamp_max_(parameters, bound)


def mode_seeking(x1: Tensor, x2: Tensor, z1: Tensor, z2: Tensor, epsilon: float = 1e-5) -> Tensor:
    """How little images differ, for how much their latents do: the generator minimises it.

    Mao et al. (2019), equation 3, as ``update_G`` in ``DCGAN-Mode-Seeking/model.py`` of
    HelenMao/MSGAN has it: the reciprocal of a ratio of two means over the batch.

    Args:
        x1: images (B, C, H, W) of the latents ``z1`` (B, L).
        x2: those of ``z2``, with the same labels.
        epsilon: added to the ratio.

    Returns:
        Shape (); at most 1 / epsilon.
    """
    ratio = (x1 - x2).abs().mean() / (z1 - z2).abs().mean()
    return 1 / (ratio + epsilon)
