"""Table 1 as anybody would write it: one GAN, and top-k by its one line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topk_plugin import TopK
from topk_plugin.reference.mixture.draws import CHUNK, draw, initial_weights
from topk_plugin.reference.mixture.settings import Settings
from topk_plugin.reference.runs import Member

CPU = torch.device("cpu")
ACTIVATIONS = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "tanh": nn.Tanh()}


def network(parameters: list[Tensor], activation: str) -> nn.Sequential:
    """Linear layers with these weights (out, in) and biases (out,), in turns."""
    layers: list[nn.Module] = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layers += [layer, ACTIVATIONS[activation]]
    return nn.Sequential(*layers[:-1])


class Plain:
    """One member, trained on the CPU; arguments as of mixture.Training."""

    def __init__(
        self, settings: Settings, member: Member, dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings, self.member, self.dtype = settings, member, dtype
        generator, critic = initial_weights(settings, member.cell, member.seed)
        self.generator = network(generator, settings.activation).to(dtype)
        self.critic = network(critic, settings.activation).to(dtype)
        rate, betas = settings.learning_rate, (settings.beta1, settings.beta2)
        self.of_generator = torch.optim.Adam(self.generator.parameters(), rate, betas)
        self.of_critic = torch.optim.Adam(self.critic.parameters(), rate, betas)
        self.loss = nn.BCEWithLogitsLoss()
        self.ones = torch.ones(settings.batch, 1, dtype=dtype)
        self.zeros = torch.zeros_like(self.ones)
        self.topk = TopK(enabled=member.arm == "top-k", gamma=settings.gamma, nu=settings.nu)
        self.iteration = 0

    def advance(self, until: int) -> Plain:
        """Trains up to that iteration."""
        while self.iteration < until:
            chunk, position = divmod(self.iteration, CHUNK)
            if not position:
                drawn = draw(self.settings, self.member.cell, self.member.seed, chunk, CPU)
                self.data = drawn.real.to(self.dtype), drawn.noise.to(self.dtype)
            self.step(*(tensor[position] for tensor in self.data))
            self.iteration += 1
            if self.iteration % self.settings.decay_every == 0:
                self.topk.end_epoch()
        return self

    def step(self, real: Tensor, noise: Tensor) -> None:
        """One iteration: the critic's steps, then the generator's.

        Args:
            real: (critic_steps, B, 2).
            noise: (critic_steps + 1, B, latent).
        """
        for points, z in zip(real, noise[:-1], strict=True):
            self.of_critic.zero_grad()
            loss = self.loss(self.critic(points), self.ones)
            loss = loss + self.loss(self.critic(self.generator(z).detach()), self.zeros)
            loss.backward()
            self.of_critic.step()
        self.of_generator.zero_grad()
        loss = self.loss(self.topk(self.critic(self.generator(noise[-1]))), self.ones)
        loss.backward()
        self.of_generator.step()

    def weights(self) -> list[Tensor]:
        """Of both networks."""
        return [p.detach() for net in (self.generator, self.critic) for p in net.parameters()]
