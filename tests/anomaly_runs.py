"""What tests of Table 2's trainings share."""

import torch

from topk_plugin.reference.anomaly import Settings, Training
from topk_plugin.reference.runs import Member

CPU = torch.device("cpu")
SMALL = Settings(
    measure_every=10, meg_epochs=2, meg_latent=6, meg_dim=8, meg_energy_steps=3, gamma=0.5,
    bigan_epochs=2, bigan_batch=50, bigan_latent=6, bigan_dim=2, bigan_learning_rate=1e-3,
    bigan_average=0.5,
)  # fmt: skip
METHODS = ["meg", "bigan"]


def training(arm: str, settings: Settings = SMALL, seed: int = 0, dtype=torch.float64) -> Training:
    return Training(settings, [Member(4, arm, seed)], CPU, dtype)


def weights(training: Training) -> list[torch.Tensor]:
    return [
        value.clone()
        for network in training.method.networks.values()
        for value in network.state_dict().values()
        if value.is_floating_point()
    ]


def trained(arm: str, settings: Settings = SMALL, until: int = 10**6) -> list[torch.Tensor]:
    run = training(arm, settings)
    run.advance(until)
    return weights(run)
