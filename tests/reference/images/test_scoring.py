"""What is measured of a training of images: losses, samples, distances."""

import copy
import io
import json
import math

import pytest
import torch
from image_runs import CPU, SIZE, changed
from image_trainings import sample, training
from PIL import Image
from torch.nn.utils import parametrize

from topk_plugin.errors import ConfigError
from topk_plugin.reference import images
from topk_plugin.reference.data import batches
from topk_plugin.reference.images import Training, scoring
from topk_plugin.reference.runs import Member


def test_rows_say_what_makes_a_score_comparable(short_epochs):
    found = training("top-k+sngan", dtype=torch.float32)
    found.advance(2)
    [loss] = found.measure()
    assert loss["kind"] == "loss"
    assert (loss["epoch"], loss["k"]) == (5, 4)
    assert all(math.isfinite(loss[n]) for n in ("critic", "generator", "real_score", "fake_score"))
    found.advance(6)
    rows = {row["kind"]: row for row in found.measure()}
    assert list(rows) == ["loss", "score", "sheet", "topk"]
    score = rows["score"]
    assert score["score"].startswith("Frechet distance by classifier of digits")
    assert (score["real"], score["fake"], score["average"]) == (1797, 60, 0.0)
    assert score["fid"] > 0
    assert score["data_digest"] == found.images.digest
    assert rows["topk"]["steps"] == 6
    assert found.measure() == [*rows.values()]  # it left no trace
    [(name, content)] = found.files().items()
    assert name == rows["sheet"]["file"] == "samples-0000006.png"
    assert Image.open(io.BytesIO(content)).size == (8 * (SIZE + 1) + 1,) * 2


def test_losses_are_means_since_the_last_measurement():
    found, expected = training("dcgan"), []
    for until in (1, 2, 3, 4):
        found.advance(until)
        [row, *_] = found.measure()
        expected.append(row["critic"])
    # the rows of a training that stops at each of its iterations are running means
    first, second = 2 * expected[1] - expected[0], 2 * expected[3] - expected[2]
    again = training("dcgan", changed(measure_every=1, score_every=6))
    for until in (1, 2, 3, 4):
        again.advance(until)
        [row, *_] = again.measure()
        if until in (2, 4):
            assert row["critic"] == pytest.approx(first if until == 2 else second)


def test_a_generator_that_is_not_finite_gets_no_score():
    found = training("dcgan", dtype=torch.float32)
    found.advance(5)
    with torch.no_grad():
        found.generator.layers[0].weight[0, 0] = math.nan
    found.advance(6)
    rows = {row["kind"]: row for row in found.measure()}
    assert rows["score"]["fid"] is None
    assert rows["score"]["nonfinite"] == 60
    assert rows["loss"]["generator"] is None
    json.dumps([*rows.values()], allow_nan=False)


@pytest.mark.parametrize("of", ["files", "scores"])
def test_averaged_weights_have_statistics_of_their_own(of):
    found = training("sagan", changed(average=0.9, iterations=12))
    found.advance(12)
    before = {name: b.clone() for name, b in found.generator.named_buffers()}
    for _ in range(2):  # which leaves nothing behind
        found.files() if of == "files" else [*found.scoring.samples(found.sampled)]
        drawn = sample(found, *latents_of(found))
        assert torch.equal(sample(found, *latents_of(found)), drawn)
        assert all(torch.equal(b, before[name]) for name, b in found.generator.named_buffers())
    norm, means = found.averaged.norm, []
    own = copy.deepcopy(found.averaged).train()
    own.norm.register_forward_pre_hook(lambda _, x: means.append(x[0].mean(dim=(0, 2, 3))))
    for z, y in found.scoring.standing():
        own(z, y)
    assert len(means) == scoring.STANDING
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=5e-3)
    assert not torch.allclose(norm.running_mean, found.generator.norm.running_mean, atol=2e-2)
    layers = [m for m in found.averaged.modules() if parametrize.is_parametrized(m)]
    assert len(layers) > 8
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert norm == pytest.approx(1.0, abs=2e-2)


def latents_of(trained: Training) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, trained.model.latent, dtype=torch.float64, generator=generator)
    return z, torch.zeros(4, dtype=torch.int64)


def test_a_folder_has_a_classifier_of_its_own(tmp_path, monkeypatch):
    draws = torch.Generator().manual_seed(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            pixels = torch.randint(256, (20, 20, 3), generator=draws, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    settings = changed(dataset="folder", data=str(tmp_path / "data"))
    known = images.prepare(settings, [SIZE], ["sngan"], CPU, lambda *told: None)
    assert known["features"].startswith("classifier of data, 24 images of 2 classes at 16x16")
    found = Training(settings, [Member(SIZE, "top-k+msgan", 0)], CPU)
    found.advance(6)
    score = found.measure()[1]
    assert (score["real"], score["data"], score["nonfinite"]) == (24, known["name"], 0)
    monkeypatch.setattr(batches, "CACHED_BYTES", 100)
    with pytest.raises(ConfigError, match="expected at most .* MiB, on which one is trained"):
        images.prepare(settings, [SIZE], ["sngan"], CPU, lambda *told: None)
