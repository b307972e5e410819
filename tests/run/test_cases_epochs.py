"""Scripts whose epochs were not counted, or wrongly: the k of each generator step by `--log`."""

import json
import shutil
from pathlib import Path

import pytest
from launched import Done, topk_run

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture
def folder(tmp_path):
    shutil.copy(CASES / "small.py", tmp_path)
    return tmp_path


def run(folder: Path, name: str, *flags: str) -> tuple[Done, list[int]]:
    """The run, and k after each fourth generator step, of sixteen."""
    shutil.copy(CASES / name, folder)
    settings = ("--gamma", "0.5", "--nu", "0.1", "--log", "log.jsonl", *flags)
    done = topk_run(folder, name, flags=settings, critic="small:Judge")
    assert done.status == 0, done.err
    ks = [json.loads(line)["k"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(len({*ks[i : i + 4]}) == 1 for i in range(0, len(ks), 4)), "k falls between passes"
    return done, ks[::4]


def test_batches_kept_by_itertools_cycle(folder):
    """One epoch ended, k stayed for ever, nothing was said; epochs go on, and it is said how."""
    done, ks = run(folder, "itertools_cycle.py")
    assert ks == [16, 8, 4, 2, 1, 1]
    assert "6 epochs ended" in done.err
    assert (
        "scores; epochs counted by steps, since the loop keeps a DataLoader's batches: 4 "
        "generator steps a pass, as in the first one; "
    ) in done.err


def test_batches_kept_in_a_list(folder):
    """Nothing was counted."""
    done, ks = run(folder, "cached_list.py")
    assert ks == [16, 8, 4, 2, 1]
    assert "5 epochs ended" in done.err
    assert "4 critic steps a pass, one a batch; " in done.err


def test_passes_before_the_first_step_through_the_critic_are_said(folder):
    """They were silently left out."""
    done, ks = run(folder, "warmup.py")
    assert ks == [16, 8]
    assert (
        "verdict: not counted, since before the generator's first step through the critic: 2 "
        "passes of the DataLoader (--passes all counts them)\n"
    ) in done.err


def test_passes_before_the_first_step_through_the_critic_count_by_a_setting(folder):
    """No setting did."""
    done, ks = run(folder, "warmup.py", "--passes", "all")
    assert ks == [4, 2]
    assert "4 epochs ended" in done.err
    assert "not counted" not in done.err


def test_batches_fetched_ahead(folder):
    """The last batch of a pass was trained with the next pass's k."""
    done, ks = run(folder, "prefetcher.py")
    assert ks == [16, 8, 4, 2]
    assert "4 epochs ended" in done.err
    assert "; epochs counted by passes of a DataLoader over 64 samples; " in done.err


def test_epochs_by_steps_and_none(folder):
    done, ks = run(folder, "no_loader.py", "--every", "4")
    assert ks == [16, 8]
    assert "; epochs counted by --every 4; " in done.err
    done, ks = run(folder, "no_loader.py")
    assert ks == [16, 16]
    assert "epochs counted" not in done.err
    assert "k never decayed (no DataLoader fed a generator step): pass --every N" in done.err
