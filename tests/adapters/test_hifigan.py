"""HiFi-GAN's own script under `topk run --adapter hifigan`, beyond what all have to pass."""

import pytest
import torch
from contract import SETTINGS, Upstream, skip_without, verdict_of
from losses import error

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
STEPS = [[(epoch, 8, 2 * k)] * 2 for epoch, k in enumerate((4, 3, 2))]  # of two critics each
FOLLOW = [*SETTINGS, "--companions", "follow"]


@pytest.fixture(params=ORIGINS)
def hifigan(request, tmp_path):
    skip_without("hifigan", request.param)
    return Upstream(tmp_path, "hifigan", request.param)


def test_features_follow_if_they_are_to(hifigan):
    by_hand = hifigan.train("--hand", "--follow", flags=["--no-enabled"])
    found = hifigan.train(flags=FOLLOW)
    assert error(found, by_hand) < 1e-9
    steps, dropped, rows, *rest = map(int, verdict_of(hifigan).groups())
    assert (steps, dropped, rows, *rest) == (6, 12, 48, 3, 2, 4)
    assert "direction high, k 4 of 4 in each of 2 calls a step, ranked apart" in hifigan.said()
    assert error(hifigan.train(), by_hand) > 1e-6


def test_gradients_are_those_of_the_formula_if_features_follow(hifigan):
    done = hifigan.run(command="check", flags=[*FOLLOW, "--steps", "2"])
    assert done.status == 0, done.out + done.err
    assert "result                 agrees" in done.out


def test_a_resumed_run_goes_on_with_the_epoch_of_its_checkpoint(hifigan):
    """Upstream begins the epoch anew in which the checkpoint was written."""
    first = ["--checkpoint_path", "kept", "--checkpoint_interval", "3"]
    assert hifigan.logged(*first, "--training_epochs", "2") == STEPS[0] + STEPS[1]
    state = torch.load(hifigan.folder / "kept/do_00000003", weights_only=True)
    record = state["mpd"]._metadata[""]["topk_plugin"]
    assert (record["epoch"], record["steps"]) == (1, 4)

    resumed = ["--checkpoint_path", "kept"]
    assert hifigan.logged(*resumed) == STEPS[1] + STEPS[2]
    assert "top-k record" not in hifigan.said()
    found = hifigan.weights()
    by_hand = hifigan.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = hifigan.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6


def test_a_checkpoint_without_top_k_tells_the_epochs_too(hifigan):
    first = ["--checkpoint_path", "kept", "--checkpoint_interval", "5"]
    assert hifigan.run(*first, flags=["--no-enabled"]).status == 0
    assert hifigan.logged("--checkpoint_path", "kept", "--training_epochs", "3") == STEPS[2]
    assert "top-k record" not in hifigan.said()
