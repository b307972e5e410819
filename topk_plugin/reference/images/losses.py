"""The losses of a GAN of images: what ``models.MODELS`` says of it, with top-k in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from topk_plugin import TopK
from topk_plugin.reference.images.noise import Noise
from topk_plugin.reference.losses import LOSSES
from topk_plugin.reference.models import Model
from topk_plugin.reference.regularizers import (
    consistency,
    gradient_penalty,
    latent_insensitivity,
    mode_seeking,
    shifted_and_flipped,
)


class Losses:
    """The critic's and the generator's loss of a model.

    Args:
        model: says which terms they have.
        generator, critic: as :func:`~topk_plugin.reference.images.networks.networks` makes them.
        topk, critic_topk: at the scores in the generator's loss, and in the critic's.
        precision: makes the context that the networks run in.
        dtype: of scores and losses, which is not that of mixed precision.
    """

    def __init__(
        self,
        model: Model,
        generator: nn.Module,
        critic: nn.Module,
        topk: TopK,
        critic_topk: TopK,
        precision: Callable[[], torch.autocast],
        dtype: torch.dtype,
    ) -> None:
        self.model, self.generator, self.critic = model, generator, critic
        self.topk, self.critic_topk = topk, critic_topk
        self.precision, self.dtype = precision, dtype
        # real and generated in one call, which is faster, where no layer couples the rows
        self.joint = not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())

    def of_critic(self, real: Tensor, y: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The loss, and (2,) float64 the mean scores of real and of generated images."""
        model = self.model
        labels = y if model.mode_seeking else noise.y
        with torch.no_grad(), self.precision():
            fakes = self._fakes(noise, labels)
        scored = fakes if model.mode_seeking else fakes[:1]  # the others are to be scored alike
        loss, told = real.new_zeros(()), real.new_zeros(2, dtype=torch.float64)
        for fake in scored:
            pairs = [(real, y), (fake, labels)]
            if model.balanced:
                moves = noise.moves.chunk(2, dim=1)
                pairs += [(shifted_and_flipped(x, moves[i]), of) for i, (x, of) in enumerate(pairs)]
            if model.latent_consistency:
                pairs.append((fakes[1], labels))
            with self.precision():
                real_scores, fake_scores, *others = self._scores_of(pairs)
            gated = self.critic_topk(fake_scores)
            loss = loss + LOSSES[model.loss].critic_loss(real_scores, gated)
            if model.balanced:
                for its, moved in zip((real_scores, fake_scores), others, strict=False):
                    loss = loss + model.balanced * consistency(its, moved)
            if model.latent_consistency:
                loss = loss + model.latent_consistency * consistency(fake_scores, others[-1])
            if model.penalty:
                with self.precision():
                    penalty = gradient_penalty(self._scores, real, fake, labels, noise.mix)
                loss = loss + model.penalty * penalty
            told += torch.stack([real_scores.mean(), fake_scores.mean()]).detach() / len(scored)
        return loss, told

    def of_generator(self, noise: Noise) -> Tensor:
        """The loss."""
        model = self.model
        with self.precision():
            fakes = self._fakes(noise, noise.y)
            scored = fakes if model.mode_seeking else fakes[:1]
            scores = [self._scores(fake, noise.y) for fake in scored]
        loss = scores[0].new_zeros(())
        for own in scores:
            loss = loss + LOSSES[model.loss].generator_loss(self.topk(own))
        one, *second = (fake.to(self.dtype) for fake in fakes)
        if model.mode_seeking:
            sought = mode_seeking(one, second[0], noise.z, noise.other)
            loss = loss + model.mode_seeking * sought
        if model.latent_diversity:
            loss = loss + model.latent_diversity * latent_insensitivity(one, second[0])
        return loss

    def _fakes(self, noise: Noise, labels: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) of the latents; where a model needs them, of the second ones too."""
        if self.model.mode_seeking:
            both = torch.cat([noise.z, noise.other]), torch.cat([labels, labels])
            return tuple(self.generator(*both).chunk(2))
        latents = [noise.z]
        if self.model.latent_noise:  # a call of its own: BatchNorm sees a batch as without it
            latents.append(noise.z + self.model.latent_noise * noise.other)
        return tuple(self.generator(z, labels) for z in latents)

    def _scores_of(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        """Scores (B,) of images and labels, each pair (B, C, H, W) and (B,)."""
        if not self.joint:
            return [self._scores(*pair) for pair in pairs]
        images, labels = zip(*pairs, strict=True)
        return self._scores(torch.cat(images), torch.cat(labels)).chunk(len(pairs))

    def _scores(self, x: Tensor, y: Tensor | None) -> Tensor:
        scores: Tensor = self.critic(x, y)
        return scores.to(self.dtype)
