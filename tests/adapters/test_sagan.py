"""SAGAN's own script under `topk run --adapter sagan`, beyond what every adapter has to pass."""

import json

import launched
import pytest
import torch
from contract import SETTINGS, Upstream, check_by_hand, preloaded, skip_without
from losses import error

ORIGINS = ["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)]
KEPT = ("--model_save_path", "kept", "--version", "mine")

HOOK = """
from topk_plugin import hookimpl

@hookimpl
def topk_epoch_ended(progress):
    raise ZeroDivisionError("boom")
"""


@pytest.fixture(params=ORIGINS)
def sagan(request, tmp_path):
    skip_without("sagan", request.param)
    return Upstream(tmp_path, "sagan", request.param)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--adv_loss", "wgan-gp"],  # with a gradient penalty, which is left alone
        ["--parallel", "True"],
    ],
    ids=" ".join,
)
def test_it_is_top_k_by_hand(sagan, arguments):
    steps, dropped, rows, *rest = map(int, check_by_hand(sagan, *arguments).groups())
    assert (steps, dropped, rows, *rest) == (6, 6, 24, 3, 2, 4)
    assert "direction high, k 4 of 4, decays x0.75 each epoch to 2" in sagan.said()


@pytest.mark.parametrize("loss", ["hinge", "wgan-gp"])
def test_a_batch_of_one_keeps_its_only_row(sagan, loss):
    """The critic squeezes its score to a number, and its attention maps have as many rows."""
    arguments = ["--batch_size", "1", "--adv_loss", loss]
    done = sagan.run(*arguments)
    assert done.status == 3
    assert "6 generator steps gated, 0 of 6 rows dropped, 3 epochs ended, last k 1 of 1" in done.err
    assert "k could never fall below the batch" in done.err
    found = sagan.weights()
    plain = sagan.train(*arguments, flags=["--no-enabled"])
    assert all(a.equal(b) for a, b in zip(found, plain, strict=True))


def test_a_resumed_run_has_the_k_of_one_that_never_stopped(sagan):
    """Upstream goes on at the step after the next, with a new pass."""
    assert sagan.logged(*KEPT, "--total_step", "2") == [(0, 4, 4)] * 2
    state = torch.load(sagan.folder / "kept/mine/2_D.pth", weights_only=True)
    record = state._metadata[""]["topk_plugin"]
    assert (record["epoch"], record["steps"]) == (1, 2)

    resumed = [*KEPT, "--pretrained_model", "2", "--total_step", "7"]
    assert sagan.logged(*resumed) == [(1, 4, 3)] * 2 + [(2, 4, 2)] * 2
    found = sagan.weights()
    by_hand = sagan.train(*resumed, "--hand", "--resumed", "1", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    anew = sagan.train(*resumed, "--hand", flags=["--no-enabled"])
    assert error(found, anew) > 1e-6
    assert "warn" not in sagan.said().lower()


def test_a_checkpoint_without_top_k_tells_the_epochs_by_its_step(sagan):
    assert sagan.run(*KEPT, "--total_step", "4", flags=["--no-enabled"]).status == 0
    resumed = [*KEPT, "--pretrained_model", "4", "--total_step", "7"]
    assert sagan.logged(*resumed) == [(2, 4, 2)] * 2
    assert "warn" not in sagan.said().lower()
    done = sagan.run(*resumed, flags=[*SETTINGS, "--start-epoch", "7"])
    assert done.status == 2
    assert "start_epoch: found 7, but heykeetae/Self-Attention-GAN goes on from its" in done.err


def test_another_batch_size_resumes_by_the_critics_record(sagan):
    """The number of the step would say two passes of one batch each."""
    assert len(sagan.logged(*KEPT, "--total_step", "2")) == 2
    larger = ["--batch_size", "6", "--pretrained_model", "2", "--total_step", "5"]
    assert sagan.logged(*KEPT, *larger) == [(1, 6, 4)] * 2


def test_an_error_at_the_end_of_an_epoch_ends_the_run(sagan):
    """The loop swallows whatever is raised while it fetches a batch."""
    (sagan.folder / "broken.py").write_text(HOOK)
    info = sagan.folder / "b-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: b\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[topk_plugin]\nmine = broken\n")
    words = ["run", "--adapter", "sagan", *sagan.force, *SETTINGS, "--log", "log.jsonl"]
    done = launched.run(sagan.folder, [*words, "--", sagan.script], preload=preloaded())
    assert done.status == 3
    assert "topk: HookError: plugin 'mine': its hook topk_epoch_ended raised" in done.err
    lines = (sagan.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert not (sagan.folder / "weights.pt").exists()


def test_a_written_patch_is_reverted_by_its_own_adapter(sagan):
    """It has a main.py, as others have whose adapters come first."""
    originals = sagan.files()
    assert sagan.patch("--write").status == 0
    assert sagan.files() != originals
    done = launched.run(sagan.folder, ["patch", str(sagan.checkout), "--revert"])
    assert (done.status, done.err) == (0, "restored: parameter.py, main.py, trainer.py\n")
    assert sagan.files() == originals
