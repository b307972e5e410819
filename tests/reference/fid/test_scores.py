"""Scores, and all that makes them comparable."""

import io
import math
import threading

import numpy as np
import pytest
import torch
from gaussians import CPU, by_gram

from topk_plugin.errors import RunError
from topk_plugin.reference import fid
from topk_plugin.reference.fid import Features, frechet_distance
from topk_plugin.reference.fid.cache import cached


class Pictures:
    name, digest, count = "noise", "n", 150

    def __init__(self) -> None:
        self.images = torch.rand(150, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.seen = 0

    def all(self, size):
        for part in fid.to_pixels(self.images * 2 - 1).split(size):
            self.seen += len(part)
            yield part


def flat(digest: str = "f", scale: float = 1.0) -> Features:
    """Features that are the first ten pixels."""
    return Features(
        "pixels", "Frechet distance by pixels", "1", digest, 10, CPU,
        lambda images: scale * images.flatten(1)[:, :10],
    )  # fmt: skip


def test_reference_statistics_are_those_of_all_images_and_computed_once(tmp_path):
    told, pictures = [], Pictures()
    first = fid.reference_statistics(pictures, flat(), tmp_path, lambda *both: told.append(both))
    assert told == [(64, 150), (128, 150), (150, 150)]
    rows = fid.to_pixels(pictures.images * 2 - 1).flatten(1)[:, :10].float() / 255
    np.testing.assert_allclose(first.covariance, np.cov(rows.double(), rowvar=False), rtol=1e-10)

    again = Pictures()
    kept = fid.reference_statistics(again, flat(), tmp_path, lambda *both: told.append(both))
    assert torch.equal(kept.scatter, first.scatter)
    assert (again.seen, len(told)) == (0, 3)

    # other images or features are something else
    other = Pictures()
    other.digest = "other"
    for pictures, features in ((other, flat()), (Pictures(), flat("g"))):
        fid.reference_statistics(pictures, features, tmp_path)
        assert pictures.seen == 150
    assert len([*tmp_path.glob("statistics-*.pt")]) == 3


def test_reference_statistics_of_too_few_images_are_not_kept(tmp_path):
    pictures = Pictures()
    pictures.count = 151
    with pytest.raises(RunError, match="found 150 images with finite features and 0 without"):
        fid.reference_statistics(pictures, flat(), tmp_path)
    with pytest.raises(RunError, match="found 0 images with finite features and 150 without"):
        fid.reference_statistics(Pictures(), flat(scale=math.nan), tmp_path)
    assert not [*tmp_path.glob("*.pt")]


def test_processes_that_ask_at_once_get_what_one_of_them_makes(tmp_path):
    started, made = threading.Barrier(2), []

    def make():
        made.append(1)
        return {"a": torch.ones(1)}

    def ask():
        started.wait()
        found.append(cached(tmp_path, {"what": "x"}, make))

    found: list = []
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content["a"].item() for content in found] == [1, 1]
    assert made == [1]


def test_pixels_are_rounded_as_in_a_png():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(fid.to_pixels(every / 127.5 - 1), every)
    image = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 7.0, math.inf, -math.inf, math.nan])
    assert fid.to_pixels(image).tolist() == [0, 0, 128, 255, 255, 255, 255, 0, 0]
    utils = pytest.importorskip("torchvision.utils")
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pil, file = pytest.importorskip("PIL.Image"), io.BytesIO()
    utils.save_image(image, file, "png", normalize=True, value_range=(-1, 1))
    saved = torch.from_numpy(np.array(pil.open(file))).permute(2, 0, 1)
    assert torch.equal(fid.to_pixels(image), saved)
    assert fid.to_pixels(image.bfloat16()).shape == image.shape


def test_a_score_has_all_that_makes_it_comparable(tmp_path):
    pictures = Pictures()
    real = fid.reference_statistics(pictures, flat(), tmp_path)
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1)) ** 2 * 2 - 1
    fake = fid.generated_statistics(images.split(16), flat())
    found = fid.score(pictures, real, fake, flat())
    assert found == fid.Score(
        frechet_distance(real, fake), 0, "Frechet distance by pixels", "1", "pixels", "f",
        "noise", "n", 150, 40,
    )  # fmt: skip
    rows = [
        fid.to_pixels(x).flatten(1)[:, :10].double() / 255
        for x in (pictures.images * 2 - 1, images)
    ]
    assert found.value == pytest.approx(by_gram(*(x.numpy() for x in rows)), rel=1e-6)
    assert found.comparable() == ("Frechet distance by pixels", "1", "f", "n", 150, 40)
    assert found.comparable() != fid.score(pictures, real, fake, flat("g")).comparable()


def test_images_that_are_not_finite_give_no_value_and_a_count(tmp_path):
    pictures = Pictures()
    real = fid.reference_statistics(pictures, flat(), tmp_path)
    images = torch.zeros(40, 1, 4, 4)
    images[7, 0, 3, 3], images[9, 0, 0, 0] = math.nan, math.inf  # one beyond the first ten pixels
    found = fid.score(pictures, real, fid.generated_statistics([images], flat()), flat())
    assert found[:2] == (None, 2)
    assert found.fake == 40
    fake = fid.generated_statistics([images * math.nan], flat())
    assert fid.score(pictures, real, fake, flat())[:2] == (None, 40)
    with pytest.raises(RunError, match="expected at least 2"):
        fid.score(pictures, real, fid.generated_statistics([images[:1]], flat()), flat())
