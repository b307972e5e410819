"""A classifier of the data set, and the cache that keeps it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gaussians import CPU
from sklearn.datasets import load_digits

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.reference import fid
from topk_plugin.reference.fid import Features, Statistics, classifier_features, frechet_distance


def digits() -> SimpleNamespace:
    embedded = load_digits()
    pixels = torch.from_numpy(np.rint(embedded.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(embedded.target.astype(np.int64))
    return SimpleNamespace(pixels=pixels, labels=labels, classes=10, digest="d", name="digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache") / "new"


@pytest.fixture(scope="module")
def classifier(cache) -> Features:
    return fid.classifier(digits(), CPU, cache)


def test_a_classifier_is_good_and_says_how_good(classifier, cache):
    [path] = cache.glob("classifier-*.pt")
    accuracy = torch.load(path, weights_only=True)["content"]["accuracy"]
    assert accuracy > 0.97
    assert classifier.name == f"classifier of digits ({accuracy:.1%} right)"
    assert classifier.metric == f"Frechet distance by {classifier.name}"
    features = classifier(digits().pixels[:20])
    assert features.shape == (20, 128)
    assert classifier.dimension == 128
    assert not features.requires_grad


def test_a_classifiers_features_tell_worse_images(classifier):
    images = digits().pixels[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    noise = torch.randn(898, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    first, second = images[:898], images[899:]

    def distance(pixels: torch.Tensor) -> float:
        found = [Statistics(128), Statistics(128)]
        for one, seen in zip(found, (first, pixels), strict=True):
            one.update(classifier(seen))
        return frechet_distance(*found)

    noisy = [(second[:898] + share * noise).clamp(0, 255).to(torch.uint8) for share in (0.1, 0.3)]
    one_class = second[: len(second) // 10].repeat(9, 1, 1, 1)
    distances = [distance(pixels) for pixels in (second, *noisy)]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]
    assert distance(one_class) > distances[0]


def test_a_classifier_sees_any_size_and_no_autocast(classifier):
    pixels = digits().pixels[:10]
    large = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    nearest = torch.cdist(classifier(large), classifier(pixels)).argmin(dim=1)
    assert torch.equal(nearest, torch.arange(10))
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::4] = 255  # a quarter of them: all count when it is made smaller
    even = torch.tensor([0, 64], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8)
    assert torch.cdist(classifier(stripes), classifier(even)).argmin() == 1
    with torch.autocast("cpu", torch.bfloat16):
        narrow = classifier(pixels)
    assert torch.equal(narrow, classifier(pixels))
    with pytest.raises(TypeError, match=r"torch.float32, expected torch.uint8: see to_pixels"):
        classifier(pixels.float())


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(classifier_features, "STEPS", 3)


@pytest.mark.usefixtures("short")
def test_a_classifier_is_the_same_whatever_was_drawn_before(tmp_path):
    first = fid.classifier(digits(), CPU, tmp_path / "a")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        second = fid.classifier(digits(), CPU, tmp_path / "b")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest == second.digest
    other = digits()
    other.digest = "e"
    assert fid.classifier(other, CPU, tmp_path / "a").digest != first.digest
    assert len([*tmp_path.glob("a/classifier-*.pt")]) == 2


@pytest.mark.usefixtures("short")
def test_a_classifier_is_trained_once(tmp_path, monkeypatch):
    first = fid.classifier(digits(), CPU, tmp_path)
    monkeypatch.setattr(classifier_features, "_trained", None)
    again = fid.classifier(digits(), CPU, tmp_path)
    assert (again.name, again.digest) == (first.name, first.digest)
    pixels = digits().pixels[:5]
    assert torch.equal(again(pixels), first(pixels))


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:30_000] + bytes([content[30_000] ^ 1]) + content[30_001:],
    "empty": lambda content: b"",
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew_with_a_warning(tmp_path, damage):
    first = fid.classifier(digits(), CPU, tmp_path)
    [path] = tmp_path.glob("*.pt")
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    with pytest.warns(UserWarning, match=r"classifier-.*\.pt: damaged \(.*\); made anew"):
        again = fid.classifier(digits(), CPU, tmp_path)
    assert again.digest == first.digest
    assert path.read_bytes() == good


@pytest.mark.usefixtures("short")
def test_what_is_kept_for_something_else_is_not_taken(tmp_path):
    fid.classifier(digits(), CPU, tmp_path)
    [path] = tmp_path.glob("*.pt")
    kept = torch.load(path)
    assert kept["content"]["weights"]["1.num_batches_tracked"] == 3  # the held-out ones left it
    kept["content"]["accuracy"] = 1.0
    torch.save(kept, path)
    with pytest.warns(UserWarning, match="it is not what was written"):
        assert "100.0% right" not in fid.classifier(digits(), CPU, tmp_path).name


@pytest.mark.usefixtures("short")
def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.* cannot be written .* set XDG_CACHE_HOME"):
        fid.classifier(digits(), CPU, tmp_path / "file/cache")


def test_what_cannot_be_classified_is_refused(tmp_path):
    one = digits()
    one.classes = 1
    few = digits()
    few.pixels, few.labels = few.pixels[:19], few.labels[:19]
    for images in (one, few):
        with pytest.raises(ConfigError, match="expected at least 20 images of 2 classes"):
            fid.classifier(images, CPU, tmp_path)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fid.cache_folder() == tmp_path / "topk_plugin"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/somewhere")
    assert fid.cache_folder() == Path("/somewhere/.cache/topk_plugin")
