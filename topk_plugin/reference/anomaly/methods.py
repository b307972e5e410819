"""The two ways to detect anomalies, with and without top-k: MEG and BiGAN."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

from topk_plugin import TopK
from topk_plugin.reference.anomaly.settings import Settings
from topk_plugin.reference.networks import mnist
from topk_plugin.reference.training import update


class Method(Protocol):
    """Networks and optimizers of a way to detect anomalies, by name."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Adam]

    def step(self, iteration: int, noise: torch.Generator, *batches: Tensor) -> None:
        """One iteration, the first is 1; each batch of real images is (B, 1, 28, 28)."""

    def anomaly_scores(self, x: Tensor) -> dict[str, Tensor]:
        """Scores (B,) of images (B, 1, 28, 28), by name; higher is more anomalous."""


class Meg:
    """Maximum entropy generators (Kumar et al. 2019): an energy that is low where data are.

    The generator lowers the energy of what it makes and raises the mutual information of that and
    its latents. Top-k stands at the energies alone, as it does in the source patch for MEG that
    comes with this package: the paper filters what the critic says, and the mutual information is
    told by another network, over pairs that mix the rows of a batch. With
    ``companions="follow"`` a dropped row sends the generator no gradient through that one either,
    which takes the paper's "zero out the gradient contributions" of a sample at its word.
    """

    def __init__(self, settings: Settings, topk: TopK, device: torch.device, dtype: torch.dtype):
        self.settings, self.topk = settings, topk
        latent, dim = settings.meg_latent, settings.meg_dim
        self.generator = mnist.meg_generator(latent, dim)
        self.energy = mnist.meg_energy(dim)
        self.statistics = mnist.MegStatistics(latent, dim)
        self.networks = {
            "generator": self.generator, "energy": self.energy, "statistics": self.statistics,
        }  # fmt: skip
        betas = (settings.meg_beta1, settings.meg_beta2)
        self.optimizers = {
            name: adam(network.to(device, dtype), settings.meg_learning_rate, betas)
            for name, network in self.networks.items()
        }

    def step(self, iteration: int, noise: torch.Generator, *batches: Tensor) -> None:
        [real] = batches
        self._energy_step(real, noise)
        if iteration % self.settings.meg_energy_steps == 0:
            self._generator_step(self._latents(real, noise), noise)

    def _latents(self, like: Tensor, noise: torch.Generator) -> Tensor:
        # always a whole batch: the last one of real images is a partial one
        z = like.new_empty(self.settings.meg_batch, self.settings.meg_latent)
        return z.normal_(generator=noise)

    def _energy_step(self, real: Tensor, noise: torch.Generator) -> None:
        real = real.detach().requires_grad_()
        with torch.no_grad():
            fake = self.generator(self._latents(real, noise))
        energies = self.energy(real)
        penalty = self.settings.meg_penalty * squared_gradient(energies, real)
        loss = energies.mean() - self.energy(fake).mean() + penalty
        update(loss, self.optimizers["energy"])

    def _generator_step(self, z: Tensor, noise: torch.Generator) -> None:
        fake = self.generator(z)
        energies = self.topk(self.energy(fake))
        # the images with their own latents, and with those of others
        others = z[torch.rand(len(z), generator=noise, device=z.device).argsort()]
        seen = self.topk.follow(fake)
        logits = self.statistics(torch.cat([seen, seen]), torch.cat([z, others]))
        own, mixed = logits.chunk(2)
        information = (functional.softplus(-own) + functional.softplus(mixed)).mean() / 2
        loss = energies.mean() + information
        update(loss, self.optimizers["generator"], self.optimizers["statistics"])

    def anomaly_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The energy, and the Euclidean norm of its gradient by the image."""
        x = x.detach().requires_grad_()
        energies = self.energy(x)
        [gradient] = torch.autograd.grad(energies.sum(), x)
        return {
            "energy": energies.detach(), "input-gradient norm": gradient.flatten(1).norm(dim=1)
        }  # fmt: skip


class Bigan:
    """BiGAN (Donahue et al. 2016) as an anomaly detector (Zenati et al. 2018).

    The critic tells an image with its encoding from a generated image with its latent. Top-k
    stands at its scores of the latter, in the generator's loss; the encoder's loss is left alone.
    """

    def __init__(self, settings: Settings, topk: TopK, device: torch.device, dtype: torch.dtype):
        self.settings, self.topk = settings, topk
        latent, dim = settings.bigan_latent, settings.bigan_dim
        self.generator = mnist.bigan_generator(latent, dim)
        self.encoder = mnist.bigan_encoder(latent, dim)
        self.critic = mnist.BiganCritic(latent, dim)
        trained = {"generator": self.generator, "encoder": self.encoder, "critic": self.critic}
        betas = (settings.bigan_beta1, settings.bigan_beta2)
        self.optimizers = {
            name: adam(network.to(device, dtype), settings.bigan_learning_rate, betas)
            for name, network in trained.items()
        }
        self.averaged = {name: average_of(network) for name, network in trained.items()}
        self.networks = trained | {f"averaged {name}": n for name, n in self.averaged.items()}

    def step(self, iteration: int, noise: torch.Generator, *batches: Tensor) -> None:
        first, second = batches
        self._critic_step(first, noise)
        self._generator_step(second, noise)
        for name, averaged in self.averaged.items():
            means: list[Tensor] = [*averaged.parameters()]
            latest: list[Tensor] = [*self.networks[name].parameters()]
            with torch.no_grad():
                torch._foreach_lerp_(means, latest, 1 - self.settings.bigan_average)

    def _latents(self, like: Tensor, noise: torch.Generator) -> Tensor:
        return like.new_empty(len(like), self.settings.bigan_latent).normal_(generator=noise)

    def _critic_step(self, real: Tensor, noise: torch.Generator) -> None:
        z = self._latents(real, noise)
        with torch.no_grad(), running_statistics_kept(self.generator, self.encoder):
            fake, code = self.generator(z), self.encoder(real)
        encoded, _ = self.critic(real, code, noise)
        generated, _ = self.critic(fake, z, noise)
        loss = functional.softplus(-encoded).mean() + functional.softplus(generated).mean()
        update(loss, self.optimizers["critic"])

    def _generator_step(self, real: Tensor, noise: torch.Generator) -> None:
        z = self._latents(real, noise)
        fake, code = self.generator(z), self.encoder(real)
        with running_statistics_kept(self.critic):
            encoded, _ = self.critic(real, code, noise)
            generated, _ = self.critic(fake, z, noise)
        with torch.no_grad():  # its running statistics are those of both kinds of latents
            self.generator(code)
        loss = functional.softplus(-self.topk(generated)).mean()
        loss = loss + functional.softplus(encoded).mean()
        update(loss, self.optimizers["generator"], self.optimizers["encoder"])

    @torch.no_grad()
    def anomaly_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The reconstruction's error (L1) and the critic's doubt, which is of two kinds.

        "cross-entropy" is that of taking the reconstruction for real, "feature matching" the L1
        distance of the image's and the reconstruction's features. All by the averaged weights.
        """
        generator, encoder, critic = (
            self.averaged[name].eval() for name in ("generator", "encoder", "critic")
        )
        code = encoder(x)
        made = generator(code)
        score, features = critic(made, code)
        _, expected = critic(x, code)
        weight = self.settings.bigan_weight
        missed = (1 - weight) * (x - made).abs().flatten(1).sum(dim=1)
        return {
            "cross-entropy": missed + weight * functional.softplus(-score),
            "feature matching": missed + weight * (features - expected).abs().sum(dim=1),
        }


ARMS: dict[str, tuple[type[Meg] | type[Bigan], bool]] = {
    "bigan": (Bigan, False),
    "top-k+bigan": (Bigan, True),
    "meg": (Meg, False),
    "top-k+meg": (Meg, True),
}
"""Arms: the method, and whether top-k is on."""


def squared_gradient(outputs: Tensor, x: Tensor) -> Tensor:
    """Mean over pixels and images x (B, 1, H, W) of the squared gradient of outputs (B,)."""
    [gradient] = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return gradient.square().mean()


def adam(network: nn.Module, learning_rate: float, betas: tuple[float, float]) -> Adam:
    return Adam(network.parameters(), learning_rate, betas=betas, fused=True)


def average_of(network: nn.Module) -> nn.Module:
    """A copy for averaged weights; BatchNorm's running statistics are the network's own."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, shared).requires_grad_(False)


@contextmanager
def running_statistics_kept(*networks: nn.Module) -> Iterator[None]:
    """BatchNorm goes by the batch, as in training, and does not remember it.

    TensorFlow updates running statistics with the step of their own network alone.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = [m for network in networks for m in network.modules() if isinstance(m, kinds)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
