"""Table 1 under the settings that the paper leaves open.

The plain GANs of the variants say which settings bring the baseline to the paper's: these were
chosen by the baseline alone. Their top-k arms say under which of them top-k helps. An arm is a
variant of the settings, without or with top-k; each variant is trained for itself.
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
from topk_plugin.reference.statistics import without_topk

__all__ = ["VARIANTS", "Settings", "Training", "stacks"]


def stacks(
    settings: Settings, members: Sequence[Member], device: torch.device, workers: int
) -> list[list[Member]]:
    """Members of one variant together, as networks of other shapes do not stack."""
    of = {member: without_topk(member.arm) for member in members}
    return [
        stack
        for variant in dict.fromkeys(of.values())
        for stack in stacks_of_one(
            settings, [member for member in members if of[member] == variant], device, workers
        )
    ]


class Training(MixtureTraining):
    """The GANs of one variant in training, without and with top-k."""

    def __init__(self, settings: Settings, members: Sequence[Member], device: torch.device) -> None:
        variant = without_topk(members[0].arm)
        self.named = {"gan": variant, "top-k": f"top-k+{variant}"}
        arms = {name: arm for arm, name in self.named.items()}
        of_table1 = [member._replace(arm=arms[member.arm]) for member in members]
        super().__init__(replace(settings, **VARIANTS[variant]), of_table1, device)

    def measure(self) -> list[Row]:
        """Table 1's metrics, and top-k's proof."""
        rows = [row for row in super().measure() if row["kind"] != "samples"]
        return [row | {"arm": self.named[row["arm"]]} for row in rows]
