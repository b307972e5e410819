"""What tests of the trainer of images share."""

import json

import torch
from image_runs import CPU, SIZE, TINY

from topk_plugin.reference.images import Settings, Training
from topk_plugin.reference.runs import Member


def training(arm: str, settings: Settings = TINY, seed: int = 0, dtype=torch.float64) -> Training:
    return Training(settings, [Member(SIZE, arm, seed)], CPU, dtype)


def sample(found: Training, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return found.scoring.sample(found.sampled, z, y)


def weights(trained: Training) -> torch.Tensor:
    networks = trained.generator, trained.critic
    return torch.cat([p.detach().flatten() for n in networks for p in n.parameters()])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def rows_of(job) -> list[dict]:
    return [json.loads(line) for line in (job / "metrics.jsonl").open()]


def at_the_end(trained: Training) -> list[dict]:
    """Its rows, were it to end now."""
    trained.iterations = trained.iteration
    return trained.measure()
