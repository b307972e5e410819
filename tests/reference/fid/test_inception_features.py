"""Inception's features, against pytorch-fid's own."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gaussians import CPU, RANDOM
from torch import nn

from topk_plugin.errors import ConfigError
from topk_plugin.reference import fid
from topk_plugin.reference.fid import Features, Statistics, frechet_distance, inception_features


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
    assert str(caught.value).endswith("choose other features: classifier")  # in any command's words

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
