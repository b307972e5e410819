"""What keeps critics smooth and generators diverse.

Gradient penalty, clipping, mode seeking, and consistency under augmentation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss


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


def shifted_and_flipped(x: Tensor, draws: Tensor) -> Tensor:
    """Each image as its draws say: half are mirrored, all are moved by up to an eighth.

    The augmentation of CR-GAN (Zhang et al. 2020) and ICR-GAN (Zhao et al. 2020); how far, and
    what enters at the border, as in ``src/utils/cr.py`` of POSTECH-CVLab/PyTorch-StudioGAN.

    Args:
        x: images (B, C, H, W) of any floating dtype.
        draws: (B, 3), uniform in [0, 1), float32 or float64: left and right change places where
            the first is below 0.5; then the second says how many pixels down, of -(H // 8) to
            H // 8, each as likely, and the third how many to the right, of -(W // 8) to W // 8.

    Returns:
        (B, C, H, W) of the same dtype in channels_last memory, with a graph to ``x``. What a shift
        uncovers shows the image mirrored at its outermost row or column, which is not repeated.
    """
    height, width = x.shape[2:]
    rows, columns = _shifted(height, draws[:, 1]), _shifted(width, draws[:, 2])
    columns = torch.where(draws[:, :1] < 0.5, width - 1 - columns, columns)
    sources = (width * rows[:, :, None] + columns[:, None, :]).flatten(1)  # (B, H * W)
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C)
    taken = pixels.gather(1, sources[:, :, None].expand_as(pixels))
    return taken.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _shifted(length: int, draws: Tensor) -> Tensor:
    """Of which pixel each of ``length`` in a line shows the value, (B, length), after a shift."""
    farthest, last = length // 8, length - 1
    shifts = (draws * (2 * farthest + 1)).long() - farthest
    positions = torch.arange(length, device=draws.device) - shifts[:, None]
    return last - (last - positions.abs()).abs()  # reflected at 0 and at the last


def consistency(scores: Tensor, others: Tensor) -> Tensor:
    """How far a critic's scores of images are from those of the same images changed a little.

    Zhao et al. (2020): the critic minimises it, before its weights, for real and for
    generated images that were augmented (balanced consistency regularisation, bCR), and for the
    images of latents with a little noise (latent consistency regularisation, zCR).

    Args:
        scores: (B,).
        others: (B,), in the same order; gradients flow to both.

    Returns:
        Mean squared difference, shape ().
    """
    return mse_loss(scores, others)


def latent_insensitivity(x: Tensor, others: Tensor) -> Tensor:
    """How little images change with their latents: the generator minimises it.

    The generator's term of latent consistency regularisation (Zhao et al. 2020),
    before its weight; a mean as in ``src/worker.py`` of POSTECH-CVLab/PyTorch-StudioGAN.

    Args:
        x: images (B, C, H, W) in [-1, 1]: of latents.
        others: of the same latents with a little noise, with the same labels.

    Returns:
        Minus the mean squared difference over images, channels and pixels: shape (), in [-4, 0].
    """
    return -mse_loss(x, others)
