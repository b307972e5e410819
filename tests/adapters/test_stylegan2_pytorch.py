"""stylegan2-pytorch's own command, trainer and checkpoints under `topk run`, and its top-k."""

import json
import subprocess
import sys

import pytest
from contract import SETTINGS, Upstream, check_by_hand, needs
from losses import error

NAME = "stylegan2_pytorch"
pytestmark = pytest.mark.skipif(
    bool(needs(NAME)), reason=f"not installed: {', '.join(needs(NAME))}"
)


@pytest.fixture
def upstream(tmp_path):
    return Upstream(tmp_path, NAME)


def rows(upstream: Upstream) -> list[list[int]]:
    """Of each generator's backward of the latest run, the rows that got a gradient."""
    return json.loads((upstream.folder / "rows.json").read_text())


def schedule(upstream: Upstream, *arguments: str, flags=SETTINGS) -> list[tuple[int, ...]]:
    """Step, epoch and k, of its batches together, of every generator step of a run."""
    done = upstream.run(*arguments, flags=[*flags, "--log", "log.jsonl"])
    assert done.status == 0, done.err
    lines = map(json.loads, (upstream.folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["epoch"], line["k"]) for line in lines]


@pytest.mark.slow
def test_its_own_command_trains_with_top_k(upstream):
    """As it is installed, on a machine without CUDA, which it asserts that there is."""
    pytest.importorskip("retry")
    pytest.importorskip("fire")
    upstream.run("--steps", "0")  # writes the images
    (upstream.folder / "train.py").write_text("from stylegan2_pytorch.cli import main\n\nmain()\n")
    arguments = "--data digits --image_size 16 --network_capacity 1 --batch_size 16 --num_workers 0"
    arguments += " --gradient_accumulate_every 1 --num_train_steps 8 --num_image_tiles 2 --new"
    said = "top-k verdict: 8 generator steps gated, 16 of 128 rows dropped, 2 epochs ended"
    for flags, gated in ((SETTINGS, True), (["--no-enabled"], False)):
        done = upstream.run(*arguments.split(), flags=flags)
        assert done.status == 0, done.err
        assert (said in done.err) == gated


@pytest.mark.parametrize(
    "arguments",
    [
        ["--accumulate", "1"],
        ["--quantize"],
        pytest.param(["--batch", "5", "--digits", "23"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_trainings_are_top_k_by_hand(upstream, arguments):
    """With a batch at a time, with a quantizer, whose loss is no score, and with a small batch."""
    if "--quantize" in arguments:
        pytest.importorskip("vector_quantize_pytorch")
    check_by_hand(upstream, *arguments)


def test_a_batch_of_one_is_told_that_nothing_can_be_dropped(upstream):
    done = upstream.run("--batch", "1", "--digits", "4", "--steps", "3")
    assert done.status != 0
    assert "top-k" in done.err
    assert "1 of 1" in done.err


# --- beside its own top-k -------------------------------------------------------------------------

# its own goes down to half of the batch after the first step
AT_ONCE = ("--gamma", "1e-9", "--nu", "0.5", "--every", "1")


def test_rows_and_weights_are_those_of_its_own_top_k(upstream):
    """Its hinge loss is where its own is right."""
    theirs = upstream.train("--native", flags=["--no-enabled"])
    their_rows = rows(upstream)
    ours = upstream.train(flags=AT_ONCE)
    assert rows(upstream) == their_rows
    assert [len(kept) for kept in their_rows] == [16] * 2 + [8] * 12
    assert error(ours, theirs) < 1e-12
    assert error(ours, upstream.train(flags=["--no-enabled"])) > 1e-6


def test_its_own_top_k_is_refused_beside_ours(upstream):
    done = upstream.run("--native")
    assert done.status == 2
    assert "ConfigError: adapter stylegan2_pytorch: found top_k_training, " in done.err
    assert "Leave --top_k_training out" in done.err
    assert not (upstream.folder / "weights.pt").exists()
    assert upstream.run("--native", flags=["--no-enabled"]).status == 0


@pytest.mark.slow
def test_under_the_dual_contrastive_loss_its_own_keeps_the_worst(upstream):
    """There the critic raises the scores of reals, and so a realistic sample has a high one."""
    upstream.train("--native", "--dual", flags=["--no-enabled"])
    worst = rows(upstream)[2:4]  # of the two batches of the second step, the first that drops rows
    refused = upstream.run("--dual", flags=AT_ONCE)
    assert refused.status == 3
    assert "DirectionUnknown: adapter stylegan2_pytorch: found dual_contrast_loss" in refused.err
    upstream.train("--dual", flags=[*AT_ONCE, "--direction", "high"])
    assert "direction high, as set" in upstream.said()
    assert rows(upstream)[2:4] == [sorted({*range(16)} - {*kept}) for kept in worst]


@pytest.mark.slow
def test_the_generators_dual_contrastive_loss_takes_the_critics_side(upstream):
    """Both minimise one function of the same arguments: both lower the scores of fakes."""
    program = """
import sys, torch
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.known import find_adapter
Upstream(find_adapter("stylegan2_pytorch"), []).install()
from stylegan2_pytorch.stylegan2_pytorch import dual_contrastive_loss
fake, real = torch.randn(5, requires_grad=True), torch.randn(5)
dual_contrastive_loss(fake, real).backward()
print(bool((fake.grad > 0).all()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_an_epoch_is_a_pass_of_each_rank(upstream):
    """Of two ranks each has half of the images: its own counts twice as many steps an epoch."""
    arguments = ("--ranks", "2", "--accumulate", "1", "--steps", "9", "--batch", "16")
    found = schedule(upstream, *arguments)
    assert [(epoch, k) for _, epoch, k in found] == [(0, 8)] * 4 + [(1, 6)] * 4 + [(2, 4)]


# --- stop and resume ------------------------------------------------------------------------------

SLOW = ("--gamma", "0.9", "--nu", "0.5")
# steps of 2 batches in passes of 4: a pass ends with every other step
RESUMABLE = ("--steps", "8", "--save", "1")


def by_formula(steps) -> list[tuple[int, int]]:
    """Epoch and k of both batches of the steps with these numbers, from 0."""
    return [(t, 2 * int(0.9**t * 16 + 1e-9)) for t in ((2 * s + 1) // 4 for s in steps)]


@pytest.mark.parametrize(
    "stop",
    [2, pytest.param(3, marks=pytest.mark.slow)],
    ids=["in mid-pass", "at the end of a pass"],
)
def test_a_resumed_run_goes_on_with_its_k(upstream, stop):
    """A checkpoint has a step less on it than were made, so one is made again."""
    before = schedule(upstream, *RESUMABLE, "--stop", str(stop), flags=SLOW)
    assert [step[1:] for step in before] == by_formula(range(stop + 1))
    after = schedule(upstream, *RESUMABLE, flags=SLOW)
    assert [step[0] for step in after] == [*range(stop + 2, 10)]
    # the step that is made again is one of the present epoch
    assert [step[1:] for step in after] == by_formula([stop + stop % 2, *range(stop + 1, 8)])
    assert "top-k record" not in upstream.said()


def test_a_checkpoint_without_top_k_tells_the_epochs_by_its_counter(upstream):
    assert upstream.run(*RESUMABLE, "--stop", "3", flags=["--no-enabled"]).status == 0
    after = schedule(upstream, *RESUMABLE, flags=SLOW)
    assert [step[1:] for step in after] == by_formula([4, *range(4, 8)])
    assert "without a top-k record" not in upstream.said()


@pytest.mark.slow
def test_a_checkpoint_with_top_k_is_read_without(upstream):
    schedule(upstream, *RESUMABLE, "--stop", "2", flags=SLOW)
    assert upstream.run(*RESUMABLE, flags=["--no-enabled"]).status == 0


def test_other_settings_do_not_resume(upstream):
    schedule(upstream, *RESUMABLE, "--stop", "2", flags=SLOW)
    done = upstream.run(*RESUMABLE, flags=("--gamma", "0.8", "--nu", "0.5"))
    assert done.status == 3
    assert "ResumeMismatch" in done.err
    assert "gamma: 0.9 in the checkpoint, 0.8 now" in done.err
