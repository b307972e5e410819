"""DCGAN's own script under `topk run --adapter dcgan`, beyond what every adapter has to pass."""

import launched
import pytest
import torch
from contract import SETTINGS, Upstream, preloaded, skip_without
from losses import error

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
WHOLE, SHRUNK, SMALLEST = (
    [(epoch, 4, k), (epoch, 4, k), (epoch, 2, of_two)]  # ten images in batches of four
    for epoch, k, of_two in ((0, 4, 2), (1, 3, 1), (2, 2, 1))
)


@pytest.fixture(params=ORIGINS)
def dcgan(request, tmp_path):
    skip_without("dcgan", request.param)
    return Upstream(tmp_path, "dcgan", request.param)


def saved(folder, epoch):
    """The flags to go on from the checkpoints of an epoch."""
    return [word for n in "GD" for word in (f"--net{n}", f"{folder}/net{n}_epoch_{epoch}.pth")]


def test_the_last_batch_of_a_pass_has_its_own_k(dcgan):
    assert dcgan.logged() == WHOLE + SHRUNK + SMALLEST
    assert (
        "verdict: 9 generator steps gated, 8 of 30 rows dropped, 3 epochs ended, last k 1 of 2"
        in dcgan.said()
    )


def test_a_resumed_run_goes_on_with_the_k_of_its_critic(dcgan):
    """Upstream counts its epochs from 0 again."""
    assert dcgan.logged("--niter", "1", "--outf", "first") == WHOLE
    resumed = [*saved("first", 0), "--niter", "2", "--outf", "second"]
    assert dcgan.logged(*resumed) == SHRUNK + SMALLEST
    assert "warn" not in dcgan.said().lower()
    found = dcgan.weights()
    assert dcgan.logged(*saved("second", 1), "--niter", "1") == [(3, *b) for _, *b in SMALLEST]
    by_hand = dcgan.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = dcgan.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6


def test_the_critic_of_another_run_tells_nothing_of_its_epochs(dcgan):
    assert dcgan.run("--niter", "1", "--outf", "first", flags=["--no-enabled"]).status == 0
    resumed = [*saved("first", 0), "--niter", "1"]
    assert dcgan.logged(*resumed) == WHOLE
    assert "from a checkpoint without a top-k record" in dcgan.said()
    assert dcgan.logged(*resumed, flags=[*SETTINGS, "--start-epoch", "1"]) == SHRUNK
    assert "warn" not in dcgan.said().lower()


def test_a_generator_alone_is_no_resumed_run(dcgan):
    dcgan.logged("--niter", "1", "--outf", "first")
    assert dcgan.logged(*saved("first", 0)[:2], "--niter", "1") == WHOLE
    assert "warn" not in dcgan.said().lower()


def test_its_checkpoints_load_without_top_k(dcgan):
    dcgan.logged("--outf", "kept")
    for epoch in range(3):
        state = torch.load(dcgan.folder / f"kept/netD_epoch_{epoch}.pth", weights_only=True)
        assert state._metadata[""]["topk_plugin"]["epoch"] == epoch + 1
    without = dcgan.train(*saved("kept", 2), "--niter", "1", flags=["--no-enabled"])
    assert all(tensor.isfinite().all() for tensor in without)


@pytest.mark.upstream
def test_spawned_workers_die_as_they_do_without_top_k(tmp_path):
    """It has no main guard, so a spawned worker runs the whole script again."""
    skip_without("dcgan", "genuine")
    dcgan = Upstream(tmp_path, "dcgan", "genuine")
    (dcgan.folder / "spawned.py").write_text(
        "import multiprocessing\nmultiprocessing.set_start_method('spawn')\n"
        "from topk_drive import execute\n"
        "execute('main.py', '--dataset', 'fake', '--niter', '1', '--workers', '1')\n"
    )
    for flags in (["--no-enabled"], SETTINGS):
        words = ["run", "--adapter", "dcgan", *flags, "--", "spawned.py"]
        done = launched.run(dcgan.folder, words, preload=preloaded())
        assert done.status == 1
        assert "start a new process before the" in done.err
        assert done.out.count("Random Seed") == 2
        assert "top-k ACTIVE" not in done.err
