"""SN-GAN's own script under `topk run --adapter sngan`, beyond what every adapter has to pass."""

import pytest
import torch
from contract import Upstream, check_by_hand, skip_without

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]


@pytest.fixture(params=ORIGINS)
def sngan(request, tmp_path):
    skip_without("sngan", request.param)
    return Upstream(tmp_path, "sngan", request.param)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss", "wasserstein"],
        ["--loss", "bce"],  # labels of the batch's size
        ["--model", "resnet"],
    ],
    ids=" ".join,
)
def test_every_loss_and_model_is_top_k_by_hand(sngan, arguments):
    """Nine images in batches of four: the last one of each pass is skipped, and is no step."""
    steps, dropped, rows, *rest = map(int, check_by_hand(sngan, *arguments).groups())
    assert (steps, dropped, rows, *rest) == (6, 6, 24, 3, 2, 4)
    assert "direction high, k 4 of 4, decays x0.75 each epoch to 2" in sngan.said()


def test_its_checkpoints_carry_the_epoch(sngan):
    """They are written after the pass, and load without top-k."""
    steps = sngan.logged("--checkpoint_dir", "kept")
    assert steps == [(0, 4, 4)] * 2 + [(1, 4, 3)] * 2 + [(2, 4, 2)] * 2
    for epoch in range(3):
        state = torch.load(sngan.folder / "kept" / f"disc_{epoch}", weights_only=True)
        record = state._metadata[""]["topk_plugin"]
        assert (record["epoch"], record["steps"]) == (epoch + 1, 2 * epoch + 2)
