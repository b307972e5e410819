"""FID: the distance against closed forms and pytorch-fid, features, and what is kept of them."""

import hashlib
import io
import math
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits
from torch import nn

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.reference import fid
from topk_plugin.reference.fid import (
    Features,
    Statistics,
    classifier_features,
    frechet_distance,
    inception_features,
)
from topk_plugin.reference.fid.cache import cached

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)


def statistics(rows: np.ndarray, batch: int = 7) -> Statistics:
    found = Statistics(rows.shape[1])
    for part in torch.from_numpy(rows).split(batch):
        found.update(part)
    return found


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 10) -> Statistics:
    scatter = torch.from_numpy(covariance * (count - 1))
    mean = torch.from_numpy(np.asarray(mean, float))
    return Statistics.from_state({"count": count, "nonfinite": 0, "mean": mean, "scatter": scatter})


def by_gram(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of samples without any covariance: exact for fewer samples than dimensions."""
    mean, x, y = a.mean(0) - b.mean(0), a - a.mean(0), b - b.mean(0)
    n, m = len(a) - 1, len(b) - 1
    common = np.linalg.svd(x @ y.T, compute_uv=False).sum() / math.sqrt(n * m)
    return mean @ mean + (x**2).sum() / n + (y**2).sum() / m - 2 * common


# --- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_streamed_statistics_are_numpys_and_nothing_cancels(batch):
    rows = RANDOM.normal(1e4, 1e-3, (40, 5)) * [1, 2, 3, 4, 5]
    found = statistics(rows, batch)
    assert found.count == 40
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-6)


def test_float32_is_summed_in_float64():
    rows = RANDOM.normal(100, 1, (500, 3)).astype(np.float32)
    found = statistics(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-11)


def test_statistics_of_ranks_merge():
    rows = RANDOM.normal(50, 1, (60, 4))
    whole, merged, spoiled = statistics(rows), Statistics(4), statistics(np.full((3, 4), math.nan))
    for part in (rows[:1], rows[1:31], rows[31:31], rows[31:]):
        merged.merge(statistics(part))
    merged.merge(spoiled)
    assert (merged.count, merged.nonfinite) == (60, 3)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-11, atol=1e-13)


def test_statistics_are_saved_and_loaded():
    whole = statistics(RANDOM.normal(size=(30, 4)))
    whole.update(torch.full((2, 4), math.nan))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again = Statistics.from_state(torch.load(file, weights_only=True))
    assert (again.count, again.nonfinite) == (30, 2)
    assert torch.equal(again.covariance, whole.covariance)
    assert torch.equal(again.mean, whole.mean)


def test_what_is_not_finite_is_left_out_and_counted():
    rows = RANDOM.normal(size=(20, 3))
    spoiled = rows.copy()
    spoiled[3, 1], spoiled[8, 0], spoiled[9] = math.nan, math.inf, -math.inf
    found, good = statistics(spoiled), statistics(np.delete(rows, [3, 8, 9], axis=0))
    assert (found.count, found.nonfinite) == (17, 3)
    torch.testing.assert_close(found.covariance, good.covariance)
    with pytest.raises(RunError, match="found 0 and 3 samples whose features are NaN"):
        frechet_distance(good, found)


def test_one_sample_has_no_covariance():
    one, more = statistics(np.ones((1, 3))), statistics(RANDOM.normal(size=(5, 3)))
    for pair in ((one, more), (more, one)):
        with pytest.raises(RunError, match="found 1 samples .* expected at least 2"):
            frechet_distance(*pair)
    with pytest.raises(RunError, match="features of 3 and of 4 dimensions"):
        frechet_distance(more, statistics(np.ones((5, 4))))


# --- the distance -------------------------------------------------------------------------------


def test_distances_of_gaussians_that_have_a_closed_form():
    one, other = gaussian([1.0], np.array([[4.0]])), gaussian([3.0], np.array([[9.0]]))
    assert frechet_distance(one, other) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2, rel=1e-14)

    turn = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0]  # covariances that commute
    a, b = RANDOM.uniform(0, 3, (2, 6))
    a[0] = b[1] = 0
    means = RANDOM.normal(size=(2, 6))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    pair = gaussian(means[0], turn * a @ turn.T), gaussian(means[1], turn * b @ turn.T)
    assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-7)

    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    common = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))  # that do not
    expected = np.trace(a) + np.trace(b) - 2 * common
    found = frechet_distance(gaussian(np.zeros(2), a), gaussian(np.zeros(2), b))
    assert found == pytest.approx(expected, rel=1e-13)


SHAPES = {
    "more samples than dimensions": (200, 150, 20, 20),
    "fewer": (16, 12, 300, 300),
    "singular": (200, 150, 20, 8),
    "few of one": (150, 5, 20, 20),
}


def samples(shape: str) -> tuple[np.ndarray, np.ndarray]:
    n, m, dimension, rank = SHAPES[shape]
    random = np.random.default_rng(1)
    mix = random.normal(size=(rank, dimension))
    return random.normal(size=(n, rank)) @ mix, 1.1 * random.normal(size=(m, rank)) @ mix + 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_is_exact_where_covariances_are_singular(shape):
    a, b = samples(shape)
    found = frechet_distance(statistics(a), statistics(b))
    assert found == pytest.approx(by_gram(a, b), rel=1e-11)
    assert found == pytest.approx(frechet_distance(statistics(b), statistics(a)), rel=1e-13)
    scale = np.cov(a, rowvar=False).trace()
    assert 0 <= frechet_distance(statistics(a), statistics(a, 3)) < 1e-11 * scale


@pytest.fixture(params=["SciPy as installed", "SciPy 1.18"])
def theirs(request, monkeypatch):
    """pytorch-fid's modules, which ask ``sqrtm`` for what SciPy 1.18 has no more."""
    score = pytest.importorskip("pytorch_fid.fid_score")
    installed = scipy.linalg.sqrtm

    def without(a):
        return installed(a)

    def with_disp(a, disp=True):
        return current(a) if disp else (current(a), math.nan)

    if request.param == "SciPy 1.18":
        monkeypatch.setattr(scipy.linalg, "sqrtm", without)
        with pytest.raises(TypeError, match="disp"):
            score.calculate_frechet_distance(np.zeros(1), np.eye(1), np.zeros(1), np.eye(1))
    current = scipy.linalg.sqrtm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that disp will go, and that matrices are singular
        try:
            current(np.eye(1), disp=False)
        except TypeError:
            monkeypatch.setattr(scipy.linalg, "sqrtm", with_disp)
        yield score


@pytest.mark.parametrize("shape", SHAPES)
def test_pytorch_fid_has_the_same_distance(theirs, shape):
    a, b = samples(shape)
    moments = [x for rows in (a, b) for x in (rows.mean(0), np.cov(rows, rowvar=False))]
    expected = theirs.calculate_frechet_distance(*moments)
    # where covariances are singular, its square root of their product has half the digits
    tolerance = 1e-11 if shape == "more samples than dimensions" else 1e-6
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=tolerance)


def test_the_distance_needs_nothing_of_scipy(monkeypatch):
    pair = [statistics(rows) for rows in samples("fewer")]
    expected = frechet_distance(*pair)

    def refuses(a, **options):
        raise TypeError(f"sqrtm() got an unexpected keyword argument {[*options]}")

    monkeypatch.setattr(scipy.linalg, "sqrtm", refuses)
    assert frechet_distance(*pair) == expected


# --- Inception ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file like pytorch-fid's, of weights drawn at random that keep the signal's size."""
    upstream = pytest.importorskip("pytorch_fid.inception")
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(upstream, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        network = upstream.fid_inception_v3()
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=random)
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def inception(weights) -> Features:
    return fid.inception(weights, CPU, sha256(weights)[:8])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[tuple[Path, torch.Tensor]]:
    """Two folders of PNG files, and the pixels in them."""
    image = pytest.importorskip("PIL.Image")
    made = []
    for i in range(2):
        folder = tmp_path_factory.mktemp("images")
        coarse = RANDOM.integers(0, 256 >> i, (8, 8, 8, 3)).astype(np.uint8)
        pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)
        for number, one in enumerate(pixels):
            image.fromarray(one).save(folder / f"{number:02}.png")
        made.append((folder, torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    return made


@pytest.mark.parametrize("theirs", ["SciPy as installed"], indirect=True)
def test_the_distance_of_two_folders_is_pytorch_fids(theirs, weights, folders, monkeypatch):
    """From files to the number, by the first block's 64 features; all 2,048 take it a minute."""
    state = torch.load(weights)
    upstream = sys.modules["pytorch_fid.inception"]
    monkeypatch.setattr(upstream, "load_state_dict_from_url", lambda *args, **kwargs: state)
    paths = [str(folder) for folder, _ in folders]
    expected = theirs.calculate_fid_given_paths(paths, 5, "cpu", 64, num_workers=0)

    network = inception_features.inception_network(state, 64)
    found = [Statistics(64), Statistics(64)]
    for (_, pixels), one in zip(folders, found, strict=True):
        for part in pixels.split(4):
            with torch.no_grad():
                one.update(network(part.float() / 255)[0].mean(dim=(2, 3)))
    assert expected > 0.1
    assert frechet_distance(*found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("theirs", ["SciPy as installed"], indirect=True)
def test_features_and_statistics_are_pytorch_fids(theirs, weights, folders, inception, monkeypatch):
    upstream = sys.modules["pytorch_fid.inception"]
    monkeypatch.setattr(
        upstream, "load_state_dict_from_url", lambda *args, **kwargs: torch.load(weights)
    )
    folder, pixels = folders[0]
    files = sorted(folder.iterdir())[:4]
    mean, covariance = theirs.calculate_activation_statistics(
        files, upstream.InceptionV3(), 4, num_workers=0
    )
    found = Statistics(inception.dimension)
    for part in pixels[:4].split(3):
        found.update(inception(part))
    assert (inception.dimension, found.count, found.nonfinite) == (2048, 4, 0)
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-5 * mean.max())
    np.testing.assert_allclose(
        found.covariance, covariance, rtol=0, atol=1e-5 * abs(covariance).max()
    )


def test_grey_is_three_equal_colours(inception):
    grey = torch.from_numpy(RANDOM.integers(0, 256, (1, 1, 8, 8)).astype(np.uint8))
    torch.testing.assert_close(inception(grey), inception(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ConfigError, match="2 channels, expected 1 or 3"):
        inception(grey.repeat(1, 2, 1, 1))


def test_only_the_published_weights_give_what_is_called_fid(weights, inception, monkeypatch):
    digest = sha256(weights)
    called = f"Inception of random.pth (sha256 {digest[:8]})"
    assert inception.name == called
    assert inception.metric == f"Frechet distance by {called}"
    assert inception.digest == digest
    assert inception.version == "pytorch-fid 0.3.0"

    monkeypatch.setattr(inception_features, "PUBLISHED", digest[:8])
    state = torch.get_rng_state()
    published = fid.inception(weights, CPU, digest[:8])
    assert torch.equal(torch.get_rng_state(), state)
    assert (published.name, published.metric) == ("Inception", "FID")
    network = published.network.__closure__[0].cell_contents
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_that_are_missing_or_others_are_refused(weights, tmp_path, monkeypatch):
    url = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    with pytest.raises(ConfigError) as caught:
        fid.inception(tmp_path / "none.pth", CPU)
    assert f"{tmp_path / 'none.pth'} cannot be read (No such file" in str(caught.value)
    assert f"Fetch {url}pt_inception-2015-12-05-6726825d.pth and put it there" in str(caught.value)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
    with pytest.raises(ConfigError) as caught:
        fid.find_inception()
    assert f"{place} cannot be read" in str(caught.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half")
    begins = hashlib.sha256(b"half").hexdigest()[:8]
    with pytest.raises(ConfigError) as caught:
        fid.find_inception()
    assert f"sha256 begins with {begins}, expected 6726825d" in str(caught.value)
    assert url in str(caught.value)
    assert fid.find_inception(place, begins)[0] == place

    with pytest.raises(ConfigError, match="begins with .* expected 6726825d: it is damaged, or"):
        fid.find_inception(weights)
    with pytest.raises(ConfigError, match="sha256: found '67', expected 8 to 64 hexadecimal"):
        fid.find_inception(weights, "67")


WRONG = {
    "no archive": lambda path: path.write_bytes(b"<html>not found</html>"),
    "an object": lambda path: torch.save(SimpleNamespace(a=1), path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "other keys": lambda path: torch.save({"layer.weight": torch.zeros(3)}, path),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_of_something_else_is_refused(case, tmp_path):
    upstream = pytest.importorskip("pytorch_fid.inception")
    loader, path = upstream.load_state_dict_from_url, tmp_path / "weights.pth"
    WRONG[case](path)
    with pytest.raises(ConfigError, match="does not hold the weights of pytorch-fid's Inception"):
        fid.inception(path, CPU, sha256(path)[:8])
    assert upstream.load_state_dict_from_url is loader


def test_inception_without_pytorch_fid_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_fid", None)
    with pytest.raises(ConfigError, match="pip install pytorch-fid, or choose"):
        fid.find_inception()


# --- a classifier of the data set -----------------------------------------------------------------


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


# --- scores -------------------------------------------------------------------------------------


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
