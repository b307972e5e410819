"""FID: the Frechet distance of two sets of images, each seen as a Gaussian of its features.

Heusel et al. (2017); features, resizing and statistics are those of pytorch-fid, whose weights
file has to be at hand. The distance is computed here, in float64 and from symmetric matrices
alone. Where there are no such weights, a small classifier of the data set itself gives the
features. That distance has a name of its own, since it cannot be compared with any FID.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.files import write_atomically

BATCH = 64  # images at once

# --- the distance -------------------------------------------------------------------------------


class Statistics:
    """Count, mean and covariance of features that come in batches, in float64.

    Each batch is centred at its own mean and merged as Chan et al. (1979) do, so that nothing
    cancels where the mean is large. A row with a NaN or an infinity is left out and counted.

    Args:
        dimension: of a feature, D.
        device: where to sum.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.nonfinite = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Adds a batch, (B, D)."""
        finite = features.isfinite().all(dim=1)
        rows = features[finite].to(self.mean)
        self.nonfinite += len(features) - len(rows)
        if len(rows):
            mean = rows.mean(dim=0)
            self._add(len(rows), mean, rows - mean)

    @torch.no_grad()
    def merge(self, other: Statistics) -> None:
        """Adds what another one has seen, such as that of another rank."""
        self.nonfinite += other.nonfinite
        if other.count:
            self.scatter += other.scatter.to(self.scatter)
            mean = other.mean.to(self.mean)
            self._add(other.count, mean, mean.new_empty(0, len(mean)))

    def _add(self, count: int, mean: Tensor, centred: Tensor) -> None:
        """Adds that many rows, of which ``centred`` are not yet in the scatter."""
        total, apart = self.count + count, mean - self.mean
        rows = torch.cat([centred, math.sqrt(self.count * count / total) * apart[None]])
        self.scatter.addmm_(rows.T, rows)
        self.mean += apart * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by the count less one, as numpy.cov does.

        Raises:
            RunError: fewer than two samples.
        """
        if self.count < 2:
            raise RunError(
                f"found {self.count} samples with finite features ({self.nonfinite} without), "
                "expected at least 2, of which there is a covariance; take more"
            )
        return self.scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Any]:
        """All of it on the CPU, for ``torch.load(weights_only=True)`` and for other ranks."""
        return {
            "count": self.count, "nonfinite": self.nonfinite,
            "mean": self.mean.cpu(), "scatter": self.scatter.cpu(),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> Statistics:
        """What a :meth:`state_dict` says."""
        made = cls(0)
        made.count, made.nonfinite = state["count"], state["nonfinite"]
        made.mean, made.scatter = state["mean"].to(device), state["scatter"].to(device)
        return made


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """``|mean - mean|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2))`` for covariances A, B; at least 0.

    The last trace is the sum of the singular values of ``F' G``, where ``A = F F'`` and
    ``B = G G'``. No matrix of the form A B has to be formed, whose eigenvalues would lose half
    of the digits where covariances are singular, as they are of fewer samples than dimensions.

    Raises:
        RunError: fewer than two samples, other dimensions, or features that were not finite.
    """
    if len(a.mean) != len(b.mean):
        raise RunError(
            f"found features of {len(a.mean)} and of {len(b.mean)} dimensions, expected the same "
            "network's"
        )
    if a.nonfinite or b.nonfinite:
        raise RunError(
            f"found {a.nonfinite} and {b.nonfinite} samples whose features are NaN or infinite, "
            "expected none: there is no distance of the others alone"
        )
    one, other = a.covariance, b.covariance.to(a.mean)
    apart = a.mean - b.mean.to(a.mean)
    common = torch.linalg.svdvals(_factor(one).T @ _factor(other)).sum()
    distance = apart.square().sum() + one.trace() + other.trace() - 2 * common
    return max(distance.item(), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """F with ``F F' = covariance``, (D, rank)."""
    values, vectors = torch.linalg.eigh(covariance)
    # smaller ones are rounding of the largest one, and their roots would not be small
    known = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, known] * values[known].sqrt()


# --- features -----------------------------------------------------------------------------------


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the uint8 that a PNG of them holds; what is beyond is cut off."""
    return ((images.float() + 1) * 127.5 + 0.5).nan_to_num(0).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Features:
    """A network whose features are compared."""

    name: str
    metric: str  # what a distance of these features is called
    version: str  # of what computes them
    digest: str  # sha256 of the weights, in hexadecimal
    dimension: int
    device: torch.device
    network: Callable[[Tensor], Tensor]  # of images (B, C, H, W) in [0, 1]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W), uint8; the trainer's autocast is not theirs."""
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels of type {pixels.dtype}, expected torch.uint8: see to_pixels")
        with torch.autocast(self.device.type, enabled=False):
            return self.network(pixels.to(self.device).float() / 255)


# --- Inception ----------------------------------------------------------------------------------

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = "6726825d"  # torch's convention: the file's sha256 begins with it
POOL3 = 2048

_building = threading.Lock()


def find_inception(path: str | Path | None = None, sha256: str = PUBLISHED) -> tuple[Path, str]:
    """The file with Inception's weights, and its sha256.

    Args:
        path: None for torch hub's cache, where pytorch-fid leaves it.
        sha256: how its digest begins; at least 8 hexadecimal digits.

    Raises:
        ConfigError: no such file, or another one.
    """
    upstream = _pytorch_fid()
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise ConfigError(
            f"sha256: found {sha256!r}, expected 8 to 64 hexadecimal digits in lower case"
        )
    place = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS) if path is None else Path(path)
    place = place.expanduser()
    where = "there, or anywhere and give its path" if path is None else "there, or correct the path"
    get = f"Fetch {upstream.FID_WEIGHTS_URL} and put it {where}"
    try:
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"inception: {place} cannot be read ({error.strerror}), expected the weights that FID "
            f"is defined by. {get}; or choose the features of a classifier: "
            "--set features=classifier"
        ) from None
    if not digest.startswith(sha256):
        raise ConfigError(
            f"inception: {place}: found a file whose sha256 begins with {digest[:8]}, expected "
            f"{sha256}: it is damaged, or has other weights. {get}"
        )
    return place, digest


def inception(
    path: str | Path | None, device: torch.device | str, sha256: str = PUBLISHED
) -> Features:
    """pytorch-fid's Inception with weights from a file: (B, 2048), the last pooling's output.

    Grey images are taken as three equal colours; all are resized to 299x299.

    Args:
        path, sha256: see :func:`find_inception`. Weights other than the published ones give a
            metric that bears their file's name.

    Raises:
        ConfigError: as :func:`find_inception` does, or the file does not hold such weights.
    """
    place, digest = find_inception(path, sha256)
    try:
        weights = torch.load(place, "cpu", weights_only=True)
        network = inception_network(weights, POOL3)
    except Exception as error:  # whatever another kind of file makes of the unpickler
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ConfigError(
            f"inception: {place} does not hold the weights of pytorch-fid's Inception ({why}), "
            f"expected those of {_pytorch_fid().FID_WEIGHTS_URL}"
        ) from None
    network = network.to(device).to(memory_format=torch.channels_last)  # the fastest
    name = f"Inception of {place.name} (sha256 {digest[:8]})"
    published = digest.startswith(PUBLISHED)
    return Features(
        name="Inception" if published else name,
        metric="FID" if published else f"Frechet distance by {name}",
        version=f"pytorch-fid {_version()}",
        digest=digest,
        dimension=POOL3,
        device=torch.device(device),
        network=lambda images: network(_colour(images))[0].mean(dim=(2, 3)),
    )


def inception_network(weights: Mapping[str, Tensor], dimension: int) -> nn.Module:
    """pytorch-fid's network up to the block of that dimension, on the CPU.

    Its constructor asks a loader for its weights by their URL: for once it is told these.

    Raises:
        RuntimeError: the weights are not those of Inception.
    """
    upstream = _pytorch_fid()
    with _building, torch.random.fork_rng(devices=[]):
        loader = upstream.load_state_dict_from_url
        upstream.load_state_dict_from_url = lambda *args, **kwargs: weights
        try:
            block = upstream.InceptionV3.BLOCK_INDEX_BY_DIM[dimension]
            network: nn.Module = upstream.InceptionV3([block])
        finally:
            upstream.load_state_dict_from_url = loader
    return network.eval()


def _pytorch_fid() -> Any:
    try:
        from pytorch_fid import inception  # not above: an extra
    except ImportError as error:
        raise ConfigError(
            f"inception: pytorch-fid does not import ({error}); pip install pytorch-fid, or choose "
            "the features of a classifier"
        ) from None
    return inception


def _version() -> str:
    import pytorch_fid

    return str(pytorch_fid.__version__)


def _colour(images: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise ConfigError(
            f"found images with {images.shape[1]} channels, expected 1 or 3, which Inception sees"
        )
    return images.expand(-1, 3, -1, -1)


# --- a classifier of the data set -----------------------------------------------------------------

RECIPE = 1
"""To be raised with any change of what follows, so that nothing old is found in a cache."""

SIDE = 32  # pixels, at most
LARGE = 16  # pixels, from which on the first layer halves them, too
WIDTHS = (32, 64, 128)
EPOCHS, STEPS, CLASSIFIED, RATE = 8, 1_500, 64, 3e-3
HELD_OUT = 0.1


class Labelled(Protocol):
    """Images with their classes, as data.py has them."""

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
    kept = _cached(cache, key, lambda: _trained(images))
    side = min(max(height, width), SIDE)
    network = _convnet(channels, images.classes, side)
    network.load_state_dict(kept["weights"])
    body = network[:-1].eval().requires_grad_(False).to(device)
    name = f"classifier of {images.name} ({kept['accuracy']:.1%} right)"
    return Features(
        name=name,
        metric=f"Frechet distance by {name}",
        version=f"recipe {RECIPE}",
        digest=_digest(kept["weights"]),
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


# --- what is kept -------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where classifiers and statistics of data sets are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "topk_plugin")


def _cached(
    cache: Path | None, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What the cache holds under a key, or else what is made and put there.

    Of several processes that ask for it, one makes it and the others wait.
    """
    from filelock import FileLock

    folder = cache_folder() if cache is None else cache
    asked = json.dumps(key, sort_keys=True)
    path = folder / f"{key['what']}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}), expected a folder to keep features "
            "in; correct its permissions, or set XDG_CACHE_HOME"
        ) from None
    try:
        if path.exists():
            try:
                return _read(path, asked)
            except Exception as error:  # whatever a damaged file makes of the unpickler
                why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                warnings.warn(f"{path}: damaged ({why}); made anew", stacklevel=3)
        content = make()
        file = io.BytesIO()
        torch.save({"key": asked, "digest": _digest(content), "content": content}, file)
        write_atomically(path, file.getvalue())
        return content
    finally:
        lock.release()


def _read(path: Path, asked: str) -> dict[str, Any]:
    kept = torch.load(path, "cpu", weights_only=True)
    if kept["key"] != asked or kept["digest"] != _digest(kept["content"]):
        raise ValueError("it is not what was written")
    content: dict[str, Any] = kept["content"]
    return content


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of names, shapes, types and values."""
    found = hashlib.sha256()
    for name, value in sorted(content.items()):
        if isinstance(value, Mapping):
            value = _digest(value)
        elif isinstance(value, Tensor):
            found.update(f"{tuple(value.shape)} {value.dtype} ".encode())
            value = hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).hexdigest()
        found.update(f"{name} {value!r}\n".encode())
    return found.hexdigest()


# --- scores -------------------------------------------------------------------------------------


class Pictures(Protocol):
    """A set of real images, as sources have it."""

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

    return Statistics.from_state(_cached(cache, key, make), features.device)


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
        """Scores are comparable if they are equal in this: all but what was measured."""
        return self[2:]


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
