"""Settings of Table 2."""

from __future__ import annotations

from dataclasses import dataclass

from topk_plugin.reference.data.readers import GREY
from topk_plugin.reference.settings import Rule, check, is_number, is_whole

SPLITS = ("disjoint", "original")

COMPANIONS = ("keep", "follow")


@dataclass(frozen=True)
class Settings:
    """The experiment; defaults of a method are those of its repository.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    dataset: str = "digits"  # or "mnist", "fashion-mnist"; this and the next two: load_images
    data: str | None = None
    download: bool = False
    split: str = "disjoint"
    gamma: float = 0.99
    nu: float = 0.5
    companions: str = "keep"  # whether MEG's mutual information follows top-k: see Meg
    measure_every: int = 5_000  # iterations
    meg_epochs: int = 55
    meg_batch: int = 64
    meg_latent: int = 128
    meg_dim: int = 512  # channels of the widest layer
    meg_energy_steps: int = 5  # for each generator step
    meg_penalty: float = 100.0  # weight of the energy's squared gradient at real images
    meg_learning_rate: float = 1e-4
    meg_beta1: float = 0.5
    meg_beta2: float = 0.9
    bigan_epochs: int = 100
    bigan_batch: int = 100
    bigan_latent: int = 200
    bigan_dim: int = 64  # channels of the critic's convolutions
    bigan_learning_rate: float = 1e-5
    bigan_beta1: float = 0.5
    bigan_beta2: float = 0.999
    bigan_average: float = 0.999  # decay of the averaged weights, which are those that are tested
    bigan_weight: float = 0.1  # of the critic's part in the anomaly score

    def __post_init__(self) -> None:
        check(self, RULES)


RULES: list[Rule] = [
    (["dataset"], lambda v: v in GREY, f"one of {', '.join(GREY)}"),
    (["data"], lambda v: v is None or isinstance(v, str), "a path"),
    (["download"], lambda v: isinstance(v, bool), "true or false"),
    (["split"], lambda v: v in SPLITS, f"one of {', '.join(SPLITS)}"),
    (["companions"], lambda v: v in COMPANIONS, f"one of {', '.join(COMPANIONS)}"),
    (["gamma", "nu"], lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
    (
        ["measure_every", "meg_epochs", "meg_latent", "meg_energy_steps", "bigan_epochs",
         "bigan_latent"],
        lambda v: is_whole(v, 1), "a whole number, at least 1",
    ),
    (["meg_batch", "bigan_batch"], lambda v: is_whole(v, 2), "a whole number, at least 2"),
    (["meg_dim"], lambda v: is_whole(v, 8, 8), "a multiple of 8"),
    (["bigan_dim"], lambda v: is_whole(v, 2, 2), "a multiple of 2"),
    (
        ["meg_penalty", "meg_learning_rate", "bigan_learning_rate"],
        lambda v: is_number(v) and v > 0, "a number above 0",
    ),
    (
        ["meg_beta1", "meg_beta2", "bigan_beta1", "bigan_beta2", "bigan_average"],
        lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)",
    ),
    (["bigan_weight"], lambda v: is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
]  # fmt: skip
