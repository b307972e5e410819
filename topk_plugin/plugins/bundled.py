"""The plugins that come along: the paper's rule, and two others for its analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topk_plugin.config import TopKConfig
from topk_plugin.core.ranking import kept_rows
from topk_plugin.core.schedule import KSchedule
from topk_plugin.hooks import Progress, hookimpl


class PaperTopK:
    """Built in: what the paper does."""

    @hookimpl(trylast=True)
    def topk_fraction(self, progress: Progress, config: TopKConfig) -> float:
        """``max(gamma**epoch, nu)``, and back to 1 where the settings say so."""
        return KSchedule(config.gamma, config.nu, config.restore).fraction(progress.epoch)

    @hookimpl(trylast=True)
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """The k highest, ties by position, NaN last."""
        return kept_rows(scores, k)


class BottomK:
    """The k *least* realistic rows, for the paper's analysis (section 4.1); NaN last."""

    @hookimpl
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """The k lowest, ties by position, NaN last."""
        return kept_rows(scores, k, -1.0)


class RandomK:
    """k rows at random, for the paper's analysis; draws from torch's global generator."""

    @hookimpl
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """k rows, each set of k with the same chance."""
        return kept_rows(torch.rand(scores.shape, device=scores.device), k)


BY_NAME: dict[str, Callable[[], Any]] = {"bottom-k": BottomK, "random-k": RandomK}
"""Bundled plugins that the setting ``plugins`` switches on."""
