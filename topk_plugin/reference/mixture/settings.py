"""Settings of the experiments on mixtures of Gaussians, and the arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from topk_plugin.reference.experiments import SCHEDULES
from topk_plugin.reference.networks.stacked import ACTIVATIONS
from topk_plugin.reference.settings import is_number, require

PRIORS = ("normal", "uniform")
ARMS: dict[str, Mapping[str, Any]] = {"gan": {"enabled": False}, **SCHEDULES}
"""Arms, and what their TopK has that is not the run's."""


@dataclass(frozen=True)
class Settings:
    """The experiment; those under "open" are not in the paper.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    iterations: int = 100_000
    batch: int = 256
    hidden: int = 256
    learning_rate: float = 1e-4
    std: float = 0.05  # of a mode, in each direction
    gamma: float = 0.99
    nu: float = 0.75
    decay_every: int = 2_000  # iterations
    samples: int = 10_000  # that are drawn to measure
    # open
    layers: int = 4  # linear layers, the last one included
    activation: str = "leaky_relu"
    latent: int = 2
    prior: str = "normal"
    spacing: float = 1.0  # between neighbouring modes
    beta1: float = 0.9
    beta2: float = 0.999
    critic_steps: int = 1  # a generator step
    measure_every: int = 5_000  # iterations

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "hidden", "decay_every", "samples", "layers",
                     "latent", "critic_steps", "measure_every"):  # fmt: skip
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, value, "a whole number, at least 1")
        for name in ("learning_rate", "std", "spacing"):
            value = getattr(self, name)
            require(is_number(value) and value > 0, name, value, "a number above 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(is_number(value) and 0 <= value < 1, name, value, "a number in [0, 1)")
        for name in ("gamma", "nu"):
            value = getattr(self, name)
            require(is_number(value) and 0 < value <= 1, name, value, "a number in (0, 1]")
        require(self.activation in ACTIVATIONS, "activation", self.activation, [*ACTIVATIONS])
        require(self.prior in PRIORS, "prior", self.prior, [*PRIORS])
