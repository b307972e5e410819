"""Projected GAN's own script under its adapter, beyond what every adapter has to pass."""

import shutil

import pytest
from contract import SETTINGS, Upstream, check_by_hand, skip_without
from losses import error

NAME = "projected_gan"
ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
RESTARTS = ["--restart_every", "9999"]  # without them it saves nothing
PASSES = [[(epoch, 4, k)] * 3 for epoch, k in enumerate((4, 3, 2))]  # twelve images by four


@pytest.fixture(params=ORIGINS)
def projected(request, tmp_path):
    skip_without(NAME, request.param)
    return Upstream(tmp_path, NAME, request.param)


def test_it_is_top_k_by_hand_with_another_generator(projected):
    if projected.origin == "stand-in":
        pytest.skip("it has one generator")
    fastgan = ["--cfg", "fastgan_lite", "--size", "128", "--fp32", "0"]
    steps, dropped, rows, *rest = map(int, check_by_hand(projected, *fastgan).groups())
    assert (steps, dropped, rows, *rest) == (9, 9, 36, 3, 2, 4)


def test_accumulated_batches_are_ranked_apart(projected):
    steps, dropped, rows, *rest = map(int, check_by_hand(projected, "--batch-gpu", "2").groups())
    assert (steps, dropped, rows, *rest) == (9, 12, 36, 3, 1, 2)
    assert "k 2 of 2 in each of 2 calls a step, ranked apart" in projected.said()


def test_its_phase_of_regularization_is_no_step(projected):
    assert projected.logged() == PASSES[0] + PASSES[1] + PASSES[2]


def test_a_restarted_run_goes_on_by_its_own_count(projected):
    """The snapshot in the folder of the run has it."""
    assert projected.logged("--epochs", "1", *RESTARTS) == PASSES[0]
    for copy in ("found", "hand"):
        shutil.copytree(projected.folder / "runs", projected.folder / copy)
    assert projected.logged("--outdir", "found", *RESTARTS) == PASSES[1] + PASSES[2]
    found = projected.weights()
    by_hand = projected.train("--outdir", "hand", "--hand", *RESTARTS, flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9


def test_a_run_that_resumes_from_another_is_told_where_it_was(projected):
    """Upstream counts its images from 0 again."""
    assert projected.logged("--epochs", "1", *RESTARTS) == PASSES[0]
    [snapshot] = projected.folder.rglob("network-snapshot.pkl")
    resumed = ["--epochs", "2", "--resume", str(snapshot)]
    told = [*SETTINGS, "--start-epoch", "1"]
    assert projected.logged(*resumed, flags=told) == PASSES[1] + PASSES[2]
    found = projected.weights()
    by_hand = projected.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = projected.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6
