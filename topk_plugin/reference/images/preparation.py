"""What is checked before any training: data, features and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from topk_plugin.errors import ConfigError
from topk_plugin.reference.data.batches import Source, source
from topk_plugin.reference.fid.scores import reference_statistics
from topk_plugin.reference.images.networks import arm_of, networks
from topk_plugin.reference.images.scoring import features_of
from topk_plugin.reference.images.settings import Settings
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.records import Tell


def prepare(
    settings: Settings, cells: Sequence[int], arms: Sequence[str], device: torch.device, tell: Tell
) -> dict[str, Any]:
    """Checks data, features and sizes before any training; fills the caches of both.

    Args:
        cells: the size of images, in pixels.
        arms: what is to be trained.
        device: where features are computed.
        tell: told of the real images' statistics, unless these are known.

    Raises:
        ConfigError: no data, too few for a batch, no weights of the feature network or others,
            or a size that a network cannot have.
    """

    [size] = cells

    def at_first() -> dict[str, Any]:
        if settings.graphs and device.type != "cuda":
            raise ConfigError(
                f"graphs: found true on {device.type}, expected false: CUDA graphs need a GPU"
            )
        images = source_of(settings, size, 0, device, alone=True)
        with torch.device("meta"):
            for arm in arms:
                networks(arm_of(arm)[1], settings, size, images.channels, images.classes)
        tell(f"{images.name}: {images.nbytes / 2**20:,.0f} MiB decoded", 0, images.count)
        features = features_of(settings, images, device)
        what = f"features of {images.name}"
        known = reference_statistics(
            images, features, tell=lambda done, total: tell(what, done, total)
        )
        return {
            "name": images.name,
            "images": images.count,
            "channels": images.channels,
            "classes": images.classes,
            "digest": images.digest,
            "features": features.name,
            "features_digest": features.digest,
            "real": known.count,
        }

    return ranks.at_first(at_first)


def source_of(
    settings: Settings, size: int, seed: int, device: torch.device, alone: bool = False
) -> Source:
    """This rank's part of the real images, or all of them."""
    return source(
        settings.dataset, settings.data, settings.download,
        size=size, batch=settings.batch, seed=seed, device=device,
        rank=0 if alone else ranks.rank(), world=1 if alone else ranks.world(),
        channels=settings.channels, workers=settings.decoders,
    )  # fmt: skip
