"""Which of the settings that the paper leaves open bring the baseline to the paper's baseline.

Table 1's plain GAN alone: top-k is not trained here, so that no setting can be chosen for its
sake. An arm is a variant of the settings; each variant is trained for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from topk_plugin.reference.experiments import VARIANTS
from topk_plugin.reference.mixture.settings import Settings
from topk_plugin.reference.mixture.training import Training as MixtureTraining
from topk_plugin.reference.mixture.training import stacks as stacks_of_one
from topk_plugin.reference.runs.records import Member, Row

__all__ = ["VARIANTS", "Settings", "Training", "stacks"]


def stacks(
    settings: Settings, members: Sequence[Member], device: torch.device, workers: int
) -> list[list[Member]]:
    """Members of one variant together, as networks of other shapes do not stack."""
    return [
        stack
        for arm in dict.fromkeys(member.arm for member in members)
        for stack in stacks_of_one(
            settings, [member for member in members if member.arm == arm], device, workers
        )
    ]


class Training(MixtureTraining):
    """The plain GANs of one variant in training."""

    def __init__(self, settings: Settings, members: Sequence[Member], device: torch.device) -> None:
        self.variant = members[0].arm
        plain = [member._replace(arm="gan") for member in members]
        super().__init__(replace(settings, **VARIANTS[self.variant]), plain, device)

    def measure(self) -> list[Row]:
        """Table 1's metrics."""
        return [row | {"arm": self.variant} for row in super().measure() if row["kind"] == "score"]
