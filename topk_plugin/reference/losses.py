"""What critics and generators minimise, as functions of scores (B,), which are high for real."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus


class Loss(NamedTuple):
    """A pair of losses; both give a mean over the batch, shape ()."""

    critic_loss: Callable[[Tensor, Tensor], Tensor]
    """Of the scores of real images (B,) and of fake ones (B,)."""
    generator_loss: Callable[[Tensor], Tensor]
    """Of the scores of fake images (B,)."""


def non_saturating_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of a sigmoid of the scores (Goodfellow et al. 2014, section 3)."""
    return softplus(-real).mean() + softplus(fake).mean()


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """Cross-entropy of calling fake images real (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


def wasserstein_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Arjovsky et al. (2017), algorithm 1, to be minimised."""
    return fake.mean() - real.mean()


def hinge_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Miyato et al. (2018), equation 16, to be minimised."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def mean_generator_loss(fake: Tensor) -> Tensor:
    """Minus the mean score: the generator's with the Wasserstein and with the hinge loss."""
    return -fake.mean()


LOSSES: dict[str, Loss] = {
    "non-saturating": Loss(non_saturating_critic_loss, non_saturating_generator_loss),
    "wasserstein": Loss(wasserstein_critic_loss, mean_generator_loss),
    "hinge": Loss(hinge_critic_loss, mean_generator_loss),
}
