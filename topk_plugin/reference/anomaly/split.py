"""The images of Table 2: which are trained on, and which are tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from topk_plugin.errors import ConfigError
from topk_plugin.reference.anomaly.settings import Settings
from topk_plugin.reference.data.named import Images, load_images, resized
from topk_plugin.reference.data.readers import CLASSES, SIZE
from topk_plugin.reference.runs.records import Tell

SPLIT_SEED = 42  # of both repositories


class Split(NamedTuple):
    """Which images are trained on and which are tested, by their position."""

    train: Tensor  # (N,) normal images
    test: Tensor  # (M,)
    anomalous: Tensor  # (M,) bool: of the held-out digit


def split_images(labels: Tensor, held_out: int, how: str = "disjoint") -> Split:
    """80% of the normal images to train; 20% of them and all anomalies to test.

    Args:
        labels: (N,) the images' digits.
        held_out: the digit that is the anomaly.
        how: "disjoint", or "original" for the rows that the repositories' own code takes (both
            have it in data/mnist.py or data/mnist_anomaly.py): their test part is drawn anew, and
            about 80% of its normal images are in the training part.

    Raises:
        ConfigError: no image of the held-out digit, or too few of the others.
    """
    normal, anomalies = (labels != held_out).nonzero()[:, 0], (labels == held_out).nonzero()[:, 0]
    cut = int(0.8 * len(normal))
    if not len(anomalies) or not cut:
        raise ConfigError(
            f"found {len(anomalies)} images of the held-out digit {held_out} and {len(normal)} of "
            f"others, expected some of both; hold out a digit that is there, 0 to {CLASSES - 1}"
        )
    random = np.random.RandomState(SPLIT_SEED)
    mixed = normal[random.permutation(len(normal))]
    train, rest = mixed[:cut], mixed[cut:]
    if how == "original":
        random.permutation(len(rest) + len(anomalies))  # the order of a test part, never used
        rest = normal[random.permutation(len(normal))][cut:]
    test = torch.cat([rest, anomalies])
    return Split(train, test, labels[test] == held_out)


def load(settings: Settings) -> Images:
    """The data set at 28x28 pixels.

    Raises:
        ConfigError: see :func:`load_images`.
    """
    return resized(load_images(settings.dataset, settings.data, settings.download), SIZE)


def prepare(
    settings: Settings, cells: Sequence[int], arms: Sequence[str], device: torch.device, tell: Tell
) -> dict[str, Any]:
    """Checks that there are data to train on, and says which; ``download`` fetches them.

    Args:
        cells: the digits that are to be held out.
        arms: what is to be trained.
        device, tell: not used; reading them takes a moment.

    Raises:
        ConfigError: there are none, or too few for one batch.
    """
    images = load(settings)
    for digit in cells:
        found = len(split_images(images.labels, digit, settings.split).train)
        if found < settings.bigan_batch and any("bigan" in arm for arm in arms):
            raise ConfigError(
                f"bigan_batch: found {settings.bigan_batch}, expected at most the {found} images "
                f"that are trained on where {digit} is held out"
            )
    count = len(images.labels)
    return {"name": images.name, "images": count, "digest": images.digest, "split": settings.split}
