"""WassersteinGAN's own script under `topk run --adapter wgan`, beyond what all have to pass."""

import pytest
import torch
from contract import SETTINGS, Upstream, check_by_hand, skip_without
from losses import error

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
FEW = ["--images", "10"]  # three batches a pass, which ends in its only generator step


@pytest.fixture(params=ORIGINS)
def wgan(request, tmp_path):
    skip_without("wgan", request.param)
    return Upstream(tmp_path, "wgan", request.param)


def saved(folder, epoch):
    """The flags to go on from the checkpoints of an epoch."""
    return [word for n in "GD" for word in (f"--net{n}", f"{folder}/net{n}_epoch_{epoch}.pth")]


@pytest.mark.parametrize(
    "arguments",
    [["--noBN"], ["--mlp_G", "--ngf", "16"], ["--mlp_D", "--adam"]],
    ids=" ".join,
)
def test_every_network_keeps_its_lowest_scores(wgan, arguments):
    steps, dropped, rows, *rest = map(int, check_by_hand(wgan, *arguments, *FEW).groups())
    assert (steps, dropped, rows, *rest) == (3, 3, 12, 3, 2, 4)
    assert "direction low, k 4 of 4, decays x0.75 each epoch to 2" in wgan.said()
    assert "direction low, by 3 of 3 votes" in wgan.said()


def test_critic_steps_are_none_of_its_steps(wgan):
    """101 of them a pass, of which two are followed by a generator step."""
    assert wgan.logged() == [(0, 4, 4)] * 2 + [(1, 4, 3)] * 2 + [(2, 4, 2)] * 2


def test_a_resumed_run_goes_on_with_the_k_of_its_critic(wgan):
    """Upstream counts its epochs from 0 again."""
    assert wgan.logged(*FEW, "--niter", "1", "--experiment", "first") == [(0, 4, 4)]
    resumed = [*FEW, *saved("first", 0), "--niter", "2", "--experiment", "second"]
    assert wgan.logged(*resumed) == [(1, 4, 3), (2, 4, 2)]
    assert "warn" not in wgan.said().lower()
    found = wgan.weights()
    by_hand = wgan.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = wgan.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6


def test_the_critic_of_another_run_tells_nothing_of_its_epochs(wgan):
    first = [*FEW, "--niter", "1", "--experiment", "first"]
    assert wgan.run(*first, flags=["--no-enabled"]).status == 0
    resumed = [*FEW, *saved("first", 0), "--niter", "1"]
    assert wgan.logged(*resumed) == [(0, 4, 4)]
    assert "from a checkpoint without a top-k record" in wgan.said()
    assert wgan.logged(*resumed, flags=[*SETTINGS, "--start-epoch", "1"]) == [(1, 4, 3)]


def test_its_checkpoints_load_without_top_k(wgan):
    wgan.logged(*FEW, "--experiment", "kept")
    for epoch in range(3):
        state = torch.load(wgan.folder / f"kept/netD_epoch_{epoch}.pth", weights_only=True)
        record = state._metadata[""]["topk_plugin"]
        assert (record["epoch"], record["steps"]) == (epoch + 1, epoch + 1)
    without = wgan.train(*FEW, *saved("kept", 2), "--niter", "1", flags=["--no-enabled"])
    assert all(tensor.isfinite().all() for tensor in without)
