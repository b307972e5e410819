"""lightweight-gan's own command, trainer and checkpoints under `topk run`, both outputs gated."""

import json
import re

import pytest
from contract import SETTINGS, Upstream, check_by_hand, needs

NAME = "lightweight_gan"
# its critic takes seconds to build; the contract has the shortest of its trainings
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(needs(NAME)), reason=f"not installed: {', '.join(needs(NAME))}"),
]


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


def test_its_own_command_trains_with_top_k(upstream):
    """With the whole critic, on a machine without CUDA, which it asserts that there is."""
    pytest.importorskip("retry")
    upstream.run("--steps", "0", "--digits", "8")  # writes the images
    (upstream.folder / "train.py").write_text("from lightweight_gan.cli import main\n\nmain()\n")
    arguments = "--data digits --image_size 64 --batch_size 4 --num_workers 0 --num_image_tiles 3"
    arguments += " --gradient_accumulate_every 1 --num_train_steps 4 --attn_res_layers [] --new"
    done = upstream.run(*arguments.split())
    assert done.status == 0, done.err
    said = "top-k verdict: 4 generator steps gated, 2 of 16 rows dropped, 2 epochs ended"
    assert said in done.err


@pytest.mark.parametrize(
    "arguments", [["--accumulate", "2"], ["--output-size", "5"]], ids=["two batches", "a map"]
)
def test_both_outputs_have_one_mask(upstream, arguments):
    """With a mask of each, images of the kept rows of either would get a gradient."""
    check_by_hand(upstream, *arguments)
    kept = [len(batch) for batch in rows(upstream)]
    assert kept[:2] == [8, 8]
    assert kept[-1] == 4


def test_the_audit_sees_both_outputs(upstream):
    done = upstream.run("--output-size", "5", command="check")
    assert done.status == 0, done.out + done.err
    assert "rows                   those of a plain sort (40 scores)" in done.out
    assert re.search(r"^loss on kept scores +relative difference at most \d\.\de[-+]\d+$",
                     done.out, re.MULTILINE)  # fmt: skip
    assert "other outputs" not in done.out


def test_under_the_dual_contrastive_loss_high_scores_are_kept(upstream):
    """It fetches images in the generator's step, too; and its rows act on each other."""
    found = schedule(upstream, "--dual", "--steps", "6", "--digits", "32")
    assert "direction high, by 6 of 6 votes" in upstream.said()
    assert "the loss couples the rows of a batch" in upstream.said()
    assert [(epoch, k) for _, epoch, k in found] == [(0, 8), (0, 8), (1, 6), (1, 6), (2, 4), (2, 4)]


# --- stop and resume ------------------------------------------------------------------------------

# passes of 2 steps
RESUMABLE = ("--steps", "8", "--save", "1")
SLOW = ("--gamma", "0.9", "--nu", "0.5")


def by_formula(steps) -> list[tuple[int, int]]:
    """Epoch and k of the steps with these numbers, from 0."""
    return [(t, int(0.9**t * 8 + 1e-9)) for t in (step // 2 for step in steps)]


@pytest.mark.parametrize("stop", [2, 3], ids=["in mid-pass", "at the end of a pass"])
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


def test_other_settings_do_not_resume(upstream):
    schedule(upstream, *RESUMABLE, "--stop", "2", flags=SLOW)
    done = upstream.run(*RESUMABLE, flags=("--gamma", "0.8", "--nu", "0.5"))
    assert done.status == 3
    assert "gamma: 0.9 in the checkpoint, 0.8 now" in done.err
