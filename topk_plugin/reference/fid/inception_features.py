"""Features of pytorch-fid's Inception, whose weights file has to be at hand."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topk_plugin.errors import ConfigError
from topk_plugin.reference.fid.features import Features

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
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"inception: {place} cannot be read ({error.strerror}), expected the weights that FID "
            f"is defined by. {get}; or choose other features: classifier"
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
