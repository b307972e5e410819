"""StyleGAN2-ADA's own script under its adapter, beyond what every adapter has to pass."""

import pytest
from contract import SETTINGS, Upstream, check_by_hand, skip_without
from losses import error

NAME = "stylegan2_ada"
ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
PASSES = [[(epoch, 4, k)] * 3 for epoch, k in enumerate((4, 3, 2))]  # twelve images by four


@pytest.fixture(params=ORIGINS)
def ada(request, tmp_path):
    skip_without(NAME, request.param)
    return Upstream(tmp_path, NAME, request.param)


def test_it_is_top_k_by_hand_without_augmentation(ada):
    steps, dropped, rows, *rest = map(int, check_by_hand(ada, "--aug", "noaug").groups())
    assert (steps, dropped, rows, *rest) == (9, 9, 36, 3, 2, 4)


def test_its_phases_of_regularization_are_no_steps(ada):
    """The generator's optimizer steps in them, too."""
    assert ada.logged() == PASSES[0] + PASSES[1] + PASSES[2]


def test_a_run_that_resumes_is_told_where_it_was(ada):
    """Upstream counts its images from 0 again."""
    assert ada.logged("--epochs", "1") == PASSES[0]
    [snapshot] = ada.folder.rglob("network-snapshot-*.pkl")
    resumed = ["--epochs", "2", "--resume", str(snapshot)]
    told = [*SETTINGS, "--start-epoch", "1"]
    assert ada.logged(*resumed, flags=told) == PASSES[1] + PASSES[2]
    found = ada.weights()
    by_hand = ada.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = ada.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6


def test_a_copy_whose_own_top_k_is_on_is_refused(ada):
    done = ada.run("--own")
    assert done.status == 3
    assert f"UnsupportedUpstream: adapter {NAME}: its own top-k is on, which keeps" in done.err
    assert "ACTIVE" not in done.err
    assert ada.run("--own", flags=["--no-enabled"]).status == 0
