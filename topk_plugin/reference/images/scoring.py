"""Samples, their distance from the real images, and sheets of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from topk_plugin.errors import ConfigError
from topk_plugin.reference.data.batches import CACHED_BYTES, FOLDER, Cached, Source
from topk_plugin.reference.data.named import load_images
from topk_plugin.reference.fid.classifier_features import classifier
from topk_plugin.reference.fid.features import Features, to_pixels
from topk_plugin.reference.fid.frechet import Statistics
from topk_plugin.reference.fid.inception_features import inception
from topk_plugin.reference.fid.scores import generated_statistics, reference_statistics, score
from topk_plugin.reference.images.networks import settle_
from topk_plugin.reference.images.noise import NoiseOfMember
from topk_plugin.reference.images.settings import Settings
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.records import Row
from topk_plugin.reference.training import stream_of

EVALUATED = 250  # samples at once
SHOWN = 8  # rows and columns of a sample sheet

STANDING = 16
"""Batches over which BatchNorm's statistics of averaged weights are taken."""


def features_of(settings: Settings, images: Source, device: torch.device) -> Features:
    """The network whose features are compared.

    Args:
        images: the real ones.

    Raises:
        ConfigError: its weights are missing or others, or a folder is too large for a classifier.
    """
    if settings.features == "inception":
        return inception(settings.inception, device, settings.inception_sha256)
    if settings.dataset != FOLDER:  # at their own size: the metric is the same at any other
        return classifier(load_images(settings.dataset, settings.data, part="train"), device)
    if isinstance(images, Cached):
        return classifier(images.images(), device)
    raise ConfigError(
        f"features: found 'classifier' for {images.name}, {images.nbytes >> 20:,} MiB decoded, "
        f"expected at most {CACHED_BYTES >> 20:,} MiB, on which one is trained; choose the "
        "features of Inception: --set features=inception"
    )


class Scoring:
    """Samples of a member in training, and their distance from the real images.

    A network that samples is the generator, or the copy of it that has averaged weights.

    Args:
        images: the real ones.
        generator: the trained one.
        noise: draws the latents.
        precision: makes the context that the networks run in.
    """

    def __init__(
        self,
        settings: Settings,
        images: Source,
        generator: nn.Module,
        noise: NoiseOfMember,
        precision: Callable[[], torch.autocast],
    ) -> None:
        self.settings, self.images, self.generator = settings, images, generator
        self.noise, self.device, self.precision = noise, noise.device, precision

    @cached_property
    def features(self) -> Features:
        """The network whose features are compared; its weights were checked by ``prepare``."""
        return features_of(self.settings, self.images, self.device)

    @torch.no_grad()
    def sample(self, network: nn.Module, z: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, L) and labels (B,), by running statistics."""
        trains = network.training
        network.eval()
        with self.precision():
            images: Tensor = network(z, y)
        network.train(trains)
        return images

    def samples(self, network: nn.Module) -> Iterator[Tensor]:
        """This rank's share of ``samples`` images, of the same latents at every call."""
        self._settle(network)
        for number, first in enumerate(range(0, self.settings.samples, EVALUATED)):
            if number % ranks.world() == ranks.rank():
                count = min(EVALUATED, self.settings.samples - first)
                y = torch.arange(first, first + count, device=self.device) % self.images.classes
                yield self.sample(network, self._latents(count, "samples", number), y)

    def score(self, network: nn.Module) -> Row:
        """The distance of all ranks' samples from the real images, with what it depends on."""
        features = self.features
        known = ranks.at_first(lambda: reference_statistics(self.images, features).state_dict())
        real = Statistics.from_state(known, self.device)
        own = generated_statistics(self.samples(network), features).state_dict()
        generated = Statistics(features.dimension, self.device)
        for state in ranks.gathered(own):
            generated.merge(Statistics.from_state(state, self.device))
        row = score(self.images, real, generated, features)._asdict()
        return {"score": row.pop("metric"), "fid": row.pop("value")} | row

    def sheet(self, network: nn.Module) -> bytes:
        """A PNG of samples, of the same latents each time; a conditional model's by class."""
        self._settle(network)
        count = SHOWN * SHOWN
        columns = torch.arange(count, device=self.device) % SHOWN
        z = self._latents(count, "sheet")
        return png(to_pixels(self.sample(network, z, columns % self.images.classes)), SHOWN)

    def _settle(self, network: nn.Module) -> None:
        """What comes before samples: statistics that are the same on all ranks."""
        ranks.copy_first_([*self.generator.buffers()])
        if network is self.generator:
            return
        with self.precision():
            settle_(network, self.generator, self.standing())
        ranks.copy_first_([*network.buffers()])

    def standing(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents and labels of some batches, the same at every call."""
        rows = self.settings.batch // (self.settings.accumulation * ranks.world())
        for number in range(STANDING):
            draws = stream_of(self.noise.member, "standing", number)
            y = torch.randint(self.images.classes, (rows,), generator=draws).to(self.device)
            yield self.noise.latents((rows,), draws), y

    def _latents(self, count: int, name: str, *key: int) -> Tensor:
        return self.noise.latents((count,), stream_of(self.noise.member, name, *key))


def png(images: Tensor, columns: int) -> bytes:
    """Images (B, C, H, W), uint8, side by side as a PNG."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    content = io.BytesIO()
    to_pil_image(make_grid(images.cpu(), columns, padding=1)).save(content, "PNG")
    return content.getvalue()
