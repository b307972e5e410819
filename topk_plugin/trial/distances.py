"""The Frechet distance of a folder of generated images from real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from topk_plugin.errors import ConfigError, TopKError
from topk_plugin.extras import needed
from topk_plugin.trial.metrics import NotMeasured

if TYPE_CHECKING:
    from torch import Tensor

    from topk_plugin.reference.fid import Features, Statistics

DIGITS, CLASSIFIER, INCEPTION = "digits", "classifier", "inception"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
BATCH = 64


def distances(features: str) -> tuple[str, Callable[[Path, str], float]]:
    """What the distance is called, and what computes it.

    Args:
        features: "inception" (its weights where pytorch-fid leaves them), a file of its weights,
            or "classifier": of a small network that is trained on scikit-learn's digits, whose
            distance is comparable with no FID.

    Raises:
        ConfigError: no such weights.
    """
    for module in ("sklearn", "torchvision", *["pytorch_fid"] * (features != CLASSIFIER)):
        needed(module, "distances of images")
    network, mode = _network(features)

    @cache
    def real(of: str) -> Statistics:
        if of == DIGITS:
            from topk_plugin.reference.data.named import load_images

            pixels = load_images(DIGITS).pixels
            return _statistics(pixels.split(BATCH), network, mode)
        folder = Path(of)
        if not folder.is_dir():
            raise ConfigError(
                f"--metric: found no folder {of!r} of real images; expected one, or {DIGITS}"
            )
        return _statistics(_batches(folder, mode), network, mode)

    def distance(samples: Path, of: str) -> float:
        from topk_plugin.reference.fid import frechet_distance

        found = _statistics(_batches(samples, mode), network, mode)
        if found.nonfinite:
            raise NotMeasured(f"{samples}: {found.nonfinite} images have no finite features")
        if found.count < 2:
            raise NotMeasured(f"{samples}: found {found.count} images, expected at least 2")
        try:
            return frechet_distance(real(of), found)
        except ConfigError:
            raise
        except TopKError as error:
            raise NotMeasured(f"{samples}: {error}") from None

    return network.metric, distance


def _network(features: str) -> tuple[Features, str]:
    """The features, and Pillow's name of the colours that they see."""
    from topk_plugin.reference.fid import classifier, inception

    if features == CLASSIFIER:
        from topk_plugin.reference.data.named import load_images

        return classifier(load_images(DIGITS), "cpu"), "L"
    return inception(None if features == INCEPTION else features, device="cpu"), "RGB"


def _statistics(batches: Iterable[Tensor], features: Features, mode: str) -> Statistics:
    from topk_plugin.reference.fid import Statistics

    statistics = Statistics(features.dimension)
    for pixels in batches:
        if mode == "RGB" and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        statistics.update(features(pixels))
    return statistics


def _batches(folder: Path, mode: str) -> Iterator[Tensor]:
    """Images (b, C, H, W), uint8, of all files below, in order; those of one batch are alike."""
    import numpy
    import torch
    from PIL import Image

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise NotMeasured(f"{folder}: found no images ({', '.join(sorted(SUFFIXES))})")
    batch: list[Tensor] = []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = torch.from_numpy(numpy.array(image.convert(mode)))
        except Exception as error:  # of Pillow's many decoders, whatever it is
            raise NotMeasured(f"{file}: {type(error).__name__}: {error}") from error
        pixels = pixels[None] if mode == "L" else pixels.permute(2, 0, 1)
        if batch and (len(batch) == BATCH or batch[0].shape != pixels.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(pixels)
    yield torch.stack(batch)
