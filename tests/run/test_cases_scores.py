"""Small scripts that went wrong: scores, counts, and runs in which top-k can do nothing."""

import re
from pathlib import Path

import pytest
from launched import plain_run, run, topk_run

CASES = Path(__file__).parents[1] / "cases"
SETTINGS = ("--gamma", "0.5", "--nu", "0.25")


def launched(folder, script, *arguments, critic="small:Judge", flags=SETTINGS):
    return topk_run(folder, str(CASES / script), *arguments, critic=critic, flags=flags)


@pytest.mark.parametrize(
    ("script", "steps", "rows", "dropped"),
    [
        ("accumulation_count.py", 6, 192, 80),
        ("accumulation_beside_critic_steps.py", 6, 192, 80),
        ("two_backwards.py", 12, 192, 80),
    ],
)
def test_every_gated_row_is_counted_once(tmp_path, script, steps, rows, dropped):
    """Before, half of the rows where the optimizers step on every second micro-batch."""
    done = launched(tmp_path, script)
    assert done.status == 0, done.err
    assert f"{steps} generator steps gated, {dropped} of {rows} rows dropped, 3 epochs" in done.err


def test_rows_that_come_one_by_one(tmp_path):
    done = launched(tmp_path, "one_row_at_a_time.py")
    assert "12 generator steps gated, 0 of 48 rows dropped, 3 epochs ended" in done.err
    assert done.status == 3


def test_reentrant_checkpointing_is_told_at_the_first_step(tmp_path):
    """Before, when k first fell: an epoch was lost."""
    done = launched(tmp_path, "reentrant.py", critic="__main__:Recomputed")
    assert (done.status, done.out) == (3, "")
    assert "use_reentrant=False" in done.err
    assert plain_run(tmp_path, str(CASES / "reentrant.py")).status == 0


def test_batches_of_one_row(tmp_path):
    """Before, "ACTIVE, k 1 of 1", and exit status 0."""
    done = launched(tmp_path, "batch_one.py")
    assert done.status == 3
    assert "k could never fall below the batch: found at most 1 row in a critic call" in done.err


def test_one_batch_of_two_rows_is_enough(tmp_path):
    assert launched(tmp_path, "batch_one.py", "two").status == 0


def test_a_nu_of_one(tmp_path):
    done = launched(tmp_path, "accumulation_count.py", flags=("--gamma", "0.5", "--nu", "1"))
    assert done.status == 3
    assert "found at most 16 rows in a critic call and nu = 1" in done.err
    flags = ("--gamma", "1", "--nu", "1")  # as asked for
    assert launched(tmp_path, "accumulation_count.py", flags=flags).status == 0


def test_two_scores_are_one_ranking(tmp_path):
    """Before, half of the loss was not gated."""
    by_hand = plain_run(tmp_path, str(CASES / "two_scores.py"), "--hand")
    flags = ("--gamma", "0.8", "--nu", "0.5")
    done = launched(tmp_path, "two_scores.py", critic="__main__:Critic", flags=flags)
    assert done.out == by_hand.out
    assert "ranked by the mean of the heads 0, 1" in done.err
    assert plain_run(tmp_path, str(CASES / "two_scores.py")).out != by_hand.out


@pytest.mark.parametrize("script", ["two_scores.py", "pair_critic.py"])
def test_check_agrees(tmp_path, script):
    """Before, "changed by top-k" was nothing for a critic that scores reals too."""
    critic = {"two_scores.py": "Critic", "pair_critic.py": "Pair"}[script]
    done = run(tmp_path, ["check", "--critic", f"__main__:{critic}", "--", str(CASES / script)])
    assert done.status == 0, done.out
    (changed,) = re.findall(r"changed by top-k +up to (\S+) of", done.out)
    assert float(changed) > 0.1


def test_a_score_of_reals_is_no_head(tmp_path):
    flags = (*SETTINGS, "--heads", "0,1")
    done = launched(tmp_path, "pair_critic.py", critic="__main__:Pair", flags=flags)
    assert done.status == 3
    assert "0: float32(16, 1), not of the generator's" in done.err


def test_the_verdict_says_how_the_vote_went(tmp_path):
    """Before, the header alone, of the first step."""
    done = launched(tmp_path, "turning_loss.py")
    assert "ACTIVE: critic small:Judge, direction low" in done.err
    assert "; direction high, by 10 of 12 votes" in done.err
    flags = (*SETTINGS, "--direction", "high")
    assert "direction high, as set" in launched(tmp_path, "turning_loss.py", flags=flags).err
