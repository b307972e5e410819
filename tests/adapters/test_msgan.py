"""MSGAN's own scripts under `topk run --adapter msgan`, beyond what every adapter has to pass."""

import launched
import pytest
import torch
from contract import SETTINGS, Upstream, check_by_hand, preloaded, skip_without
from losses import error

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
PIX2PIX = ["--variant", "Pix2Pix"]
STEPS = [[(epoch, 8, 2 * k)] * 2 for epoch, k in enumerate((4, 3, 2))]  # of two calls each


@pytest.fixture(params=ORIGINS)
def msgan(request, tmp_path):
    skip_without("msgan", request.param)
    return Upstream(tmp_path, "msgan", request.param)


def test_its_pix2pix_variant_is_top_k_by_hand(msgan):
    """With two maps of scores, an L1 term and the mode-seeking one."""
    steps, dropped, rows, *rest = map(int, check_by_hand(msgan, *PIX2PIX).groups())
    assert (steps, dropped, rows, *rest) == (6, 12, 48, 3, 2, 4)
    assert "direction high, k 4 of 4 in each of 2 calls a step, ranked apart" in msgan.said()


def test_gradients_of_its_pix2pix_variant_are_those_of_the_formula(msgan):
    done = msgan.run(*PIX2PIX, command="check", flags=[*SETTINGS, "--steps", "2"])
    assert done.status == 0, done.out + done.err
    assert "result                 agrees" in done.out


def test_a_single_map_is_summed_over_samples(msgan):
    """Its loss takes a tensor for a list of maps, one a sample."""
    if msgan.origin == "stand-in":
        pytest.skip("its loss is the genuine one's")
    arguments = [*PIX2PIX, "--netD", "basic_128"]
    by_hand = msgan.train(*arguments, "--hand", flags=["--no-enabled"])
    found = msgan.train(*arguments, flags=[*SETTINGS, "--reduction", "sum"])
    assert error(found, by_hand) < 1e-9
    assert error(msgan.train(*arguments), by_hand) > 1e-6


def test_a_resumed_run_goes_on_with_the_epochs_of_its_checkpoint(msgan):
    kept = ["--result_dir", "kept"]
    assert msgan.logged(*kept, "--n_ep", "1") == STEPS[0]
    resumed = [*kept, "--resume", "kept/trial/00000.pth"]
    assert msgan.logged(*resumed) == STEPS[1] + STEPS[2]
    assert "warn" not in msgan.said().lower()
    state = torch.load(msgan.folder / "kept/trial/00002.pth", weights_only=True)
    assert state["dis"]._metadata[""]["topk_plugin"]["epoch"] == 3
    found = msgan.weights()
    by_hand = msgan.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = msgan.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6


def test_a_checkpoint_without_top_k_tells_the_epochs_too(msgan):
    kept = ["--result_dir", "kept"]
    assert msgan.run(*kept, "--n_ep", "2", flags=["--no-enabled"]).status == 0
    assert msgan.logged(*kept, "--resume", "kept/trial/00001.pth") == STEPS[2]
    assert "warn" not in msgan.said().lower()


def test_its_pix2pix_variant_resumes_by_its_count_of_epochs(msgan):
    first = [*PIX2PIX, "--niter", "1"]
    assert msgan.logged(*first) == STEPS[0]
    resumed = [*PIX2PIX, "--continue_train", "--epoch_count", "2"]
    assert msgan.logged(*resumed) == STEPS[1] + STEPS[2]
    assert "warn" not in msgan.said().lower()
    assert "2 epochs ended" in msgan.said()


def test_its_drit_variant_is_refused(msgan):
    why = "adapter msgan: the DRIT variant takes one image of a batch"
    done = msgan.run("--variant", "DRIT")
    assert done.status == 3
    assert f"topk: UnsupportedUpstream: {why}" in done.err
    assert "ACTIVE" not in done.err
    script = "DRIT-Mode-Seeking/train.py"
    words = [script, "--dataroot", ".", "--topk"]
    assert msgan.patch("--write").status == 0
    done = launched.run(msgan.folder, words, plain=True, preload=preloaded())
    if msgan.origin == "genuine" and "No module named" in done.err:
        pytest.skip("it imports what is not here")
    assert done.status == 3
    assert why in done.err
