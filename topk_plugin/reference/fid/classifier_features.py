"""Features of a small classifier of the data set itself, for want of Inception's weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from topk_plugin.errors import ConfigError
from topk_plugin.reference.fid.cache import cached, digest_of
from topk_plugin.reference.fid.features import Features
from topk_plugin.reference.randomness import stream

RECIPE = 1
"""To be raised with any change of what follows, so that nothing old is found in a cache."""

SIDE = 32  # pixels, at most
LARGE = 16  # pixels, from which on the first layer halves them, too
WIDTHS = (32, 64, 128)
EPOCHS, STEPS, CLASSIFIED, RATE = 8, 1_500, 64, 3e-3
HELD_OUT = 0.1


class Labelled(Protocol):
    """Images with their classes, as ``data.named`` has them."""

    @property
    def pixels(self) -> Tensor:
        """(N, C, H, W) uint8."""

    @property
    def labels(self) -> Tensor:
        """(N,), whole numbers below ``classes``."""

    @property
    def classes(self) -> int:
        """At least 2."""

    @property
    def name(self) -> str:
        """To be shown."""

    @property
    def digest(self) -> str:
        """sha256 of pixels and labels."""


def classifier(images: Labelled, device: torch.device | str, cache: Path | None = None) -> Features:
    """A small convnet, trained to tell the images' classes; its last 128 features.

    It is trained on nine images in ten, by one CPU thread, always in the same way; the others say
    how many it gets right, and its name tells that. Images of any size are resized to what it was
    trained on: the size of these, at most 32x32.

    Args:
        cache: folder where it is kept; None for :func:`cache_folder`. A damaged file in it is
            replaced, with a warning.

    Raises:
        ConfigError: fewer than two classes, or fewer than 20 images.
        RunError: the cache cannot be written.
    """
    count, channels, height, width = images.pixels.shape
    if images.classes < 2 or count < 20:
        raise ConfigError(
            f"features: found {count} images of {images.classes} classes in {images.name}, "
            "expected at least 20 images of 2 classes for a classifier; choose the features of "
            "Inception"
        )
    key = {"what": "classifier", "recipe": RECIPE, "data": images.digest}
    kept = cached(cache, key, lambda: _trained(images))
    side = min(max(height, width), SIDE)
    network = _convnet(channels, images.classes, side)
    network.load_state_dict(kept["weights"])
    body = network[:-1].eval().requires_grad_(False).to(device)
    name = f"classifier of {images.name} ({kept['accuracy']:.1%} right)"
    return Features(
        name=name,
        metric=f"Frechet distance by {name}",
        version=f"recipe {RECIPE}",
        digest=digest_of(kept["weights"]),
        dimension=WIDTHS[-1],
        device=torch.device(device),
        network=lambda shown: body(_sized(shown, side)),
    )


def _convnet(channels: int, classes: int, side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            stream("classifier", "weights", device=torch.device("cpu")).initial_seed()
        )
        for wide in WIDTHS:
            stride = 1 if not layers and side < LARGE else 2
            layers += [
                nn.Conv2d(channels, wide, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
            channels = wide
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *pooled, nn.Linear(channels, classes))


def _sized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, side, side), centred."""
    if images.shape[2:] != (side, side):
        images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return images * 2 - 1


def _trained(images: Labelled) -> dict[str, Any]:
    """Weights, and the share of held-out images that they get right."""
    count, channels, height, width = images.pixels.shape
    side = min(max(height, width), SIDE)
    network = _convnet(channels, images.classes, side)
    random = stream("classifier", images.digest, device=torch.device("cpu"))
    held_out, train = torch.randperm(count, generator=random).tensor_split([int(count * HELD_OUT)])

    def batch(rows: Tensor) -> Tensor:
        return network(_sized(images.pixels[rows].float() / 255, side))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that rounding is the same wherever it is trained
    try:
        steps = min(EPOCHS * math.ceil(len(train) / CLASSIFIED), STEPS)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for rows in itertools.islice(_epochs(train, random), steps):
            loss = functional.cross_entropy(batch(rows), images.labels[rows].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            found = torch.cat([batch(rows).argmax(dim=1) for rows in held_out.split(CLASSIFIED)])
        accuracy = (found == images.labels[held_out]).double().mean().item()
    finally:
        torch.set_num_threads(threads)
    return {"weights": dict(network.state_dict()), "accuracy": accuracy}


def _epochs(rows: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Batches of these rows, in a new order each time."""
    while True:
        mixed = rows[torch.randperm(len(rows), generator=random)]
        yield from mixed.split(CLASSIFIED)
