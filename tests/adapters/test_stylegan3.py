"""StyleGAN3's own script under `topk run --adapter stylegan3`, beyond what all have to pass."""

import pytest
from contract import SETTINGS, Upstream, check_by_hand, skip_without
from losses import error

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
PASSES = [[(epoch, 4, k)] * 3 for epoch, k in enumerate((4, 3, 2))]  # twelve images by four


@pytest.fixture(params=ORIGINS)
def stylegan3(request, tmp_path):
    skip_without("stylegan3", request.param)
    return Upstream(tmp_path, "stylegan3", request.param)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "stylegan3-t"],
        ["--aug", "ada"],
    ],
    ids=" ".join,
)
def test_it_is_top_k_by_hand(stylegan3, arguments):
    if stylegan3.origin == "stand-in":
        pytest.skip("it has one network and no augmentation")
    steps, dropped, rows, *rest = map(int, check_by_hand(stylegan3, *arguments).groups())
    assert (steps, dropped, rows, *rest) == (9, 9, 36, 3, 2, 4)


def test_accumulated_batches_are_ranked_apart(stylegan3):
    steps, dropped, rows, *rest = map(int, check_by_hand(stylegan3, "--batch-gpu", "2").groups())
    assert (steps, dropped, rows, *rest) == (9, 12, 36, 3, 1, 2)
    assert "k 2 of 2 in each of 2 calls a step, ranked apart" in stylegan3.said()


def test_its_phases_of_regularization_are_no_steps(stylegan3):
    """The generator's optimizer steps in them, too."""
    assert stylegan3.logged() == [step for one in PASSES for step in one]


def test_a_run_that_resumes_is_told_where_it_was(stylegan3):
    """Upstream counts its images from 0 again."""
    assert stylegan3.logged("--epochs", "1") == PASSES[0]
    [snapshot] = stylegan3.folder.rglob("network-snapshot-*.pkl")
    resumed = ["--epochs", "2", "--resume", str(snapshot)]
    assert stylegan3.logged(*resumed, flags=[*SETTINGS, "--start-epoch", "1"]) == sum(
        PASSES[1:], []
    )
    found = stylegan3.weights()
    by_hand = stylegan3.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = stylegan3.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6
