"""Distances of generated images from real ones, with all that makes them comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from topk_plugin.errors import RunError
from topk_plugin.reference.fid.cache import cached
from topk_plugin.reference.fid.features import Features, to_pixels
from topk_plugin.reference.fid.frechet import Statistics, frechet_distance

BATCH = 64  # images at once


class Pictures(Protocol):
    """A set of real images, as a source has it."""

    @property
    def name(self) -> str:
        """To be shown."""

    @property
    def digest(self) -> str:
        """Of the images, at the size at which they are given."""

    @property
    def count(self) -> int:
        """How many there are."""

    def all(self, size: int) -> Iterator[Tensor]:
        """Every image once, always in the same order: at most ``size`` at a time, uint8."""


def reference_statistics(
    pictures: Pictures,
    features: Features,
    cache: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Statistics of all real images, kept for the next run.

    Args:
        cache: folder where they are kept; None for :func:`cache_folder`. A damaged file in it is
            replaced, with a warning.
        tell: called with the images that were seen and their number.

    Raises:
        RunError: other images than said, features that are not finite, or the cache cannot be
            written.
    """
    key = {
        "what": "statistics", "data": pictures.digest, "count": pictures.count,
        "features": features.digest, "version": features.version,
        "device": features.device.type,
    }  # fmt: skip

    def make() -> dict[str, Any]:
        statistics = Statistics(features.dimension, features.device)
        for pixels in pictures.all(BATCH):
            statistics.update(features(pixels))
            tell(statistics.count, pictures.count)
        if statistics.count != pictures.count:
            raise RunError(
                f"{pictures.name}: found {statistics.count} images with finite features and "
                f"{statistics.nonfinite} without, expected {pictures.count} with; were there files "
                f"added or removed? Else {features.name} is damaged"
            )
        return statistics.state_dict()

    return Statistics.from_state(cached(cache, key, make), features.device)


def generated_statistics(batches: Iterable[Tensor], features: Features) -> Statistics:
    """Statistics of generated images, which are rounded to what a PNG holds.

    Args:
        batches: (B, C, H, W) each, in [-1, 1]; one with a NaN or an infinity is left out and
            counted.
    """
    statistics = Statistics(features.dimension, features.device)
    for images in batches:
        finite = images.isfinite().flatten(1).all(dim=1)
        seen = features(to_pixels(images))
        statistics.update(seen.masked_fill(~finite.to(seen.device)[:, None], math.nan))
    return statistics


ALIKE = ("version", "features_digest", "data_digest", "real", "fake")
"""Fields, beside the metric, in which scores have to be equal to be compared; names may differ."""


class Score(NamedTuple):
    """A distance with all that another one has to have in common with it to be compared."""

    value: float | None  # None: some generated images have no finite features
    nonfinite: int  # number of those
    metric: str
    version: str  # of what computes the features
    features: str
    features_digest: str
    data: str
    data_digest: str
    real: int  # number of images
    fake: int

    def comparable(self) -> tuple[str | int, ...]:
        """Scores are comparable if they are equal in this."""
        return (self.metric, *(getattr(self, name) for name in ALIKE))


def score(pictures: Pictures, real: Statistics, fake: Statistics, features: Features) -> Score:
    """The distance of generated images from real ones.

    Args:
        pictures: the real images.
        real: their :func:`reference_statistics`.
        fake: :func:`generated_statistics` by the same features, of all ranks.

    Raises:
        RunError: see :func:`frechet_distance`; not for generated images that are not finite.
    """
    return Score(
        value=None if fake.nonfinite else frechet_distance(real, fake),
        nonfinite=fake.nonfinite,
        metric=features.metric,
        version=features.version,
        features=features.name,
        features_digest=features.digest,
        data=pictures.name,
        data_digest=pictures.digest,
        real=real.count,
        fake=fake.count + fake.nonfinite,
    )
