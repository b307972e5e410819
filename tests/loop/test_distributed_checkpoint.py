"""Checkpoints by torch.distributed.checkpoint and its state-dict helpers restore k, or warn."""

import shutil
from pathlib import Path

import pytest
from launched import plain_run, topk_run
from torches import needs_torch

pytestmark = needs_torch("2.3", "its state-dict helpers are new before")

CASES = Path(__file__).parents[1] / "cases"
WAYS = ["folder", "stateful", "model", "file", "offloaded"]
SETTINGS = ("--gamma", "0.5", "--nu", "0.25")


@pytest.fixture
def folder(tmp_path):
    for name in ("small", "sharded"):
        shutil.copy(CASES / f"{name}.py", tmp_path)
    return tmp_path


def run(folder, *arguments, flags=SETTINGS):
    return topk_run(folder, "sharded.py", *arguments, critic="small:Judge", flags=flags)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_goes_on_at_its_k_or_says_that_it_cannot(way, folder):
    """A folder is loaded into a fresh ``state_dict``, whose own record was taken for the folder's:
    k started at the whole batch again, and nothing was said."""
    assert run(folder, way).status == 0
    done = run(folder, way, "resume")
    assert done.status == 0, done.err
    # an offloaded state_dict is another dictionary, without the metadata
    assert ("k 8 of 16" in done.err) == (way != "offloaded")
    assert ("--start-epoch" in done.err) == (way == "offloaded")


@pytest.mark.parametrize("way", WAYS)
def test_what_was_saved_without_the_plugin_is_told(way, folder):
    assert plain_run(folder, "sharded.py", way).status == 0
    done = run(folder, way, "resume")
    assert done.status == 0, done.err
    assert "k 16 of 16" in done.err
    assert "weights were loaded into the critic from a checkpoint without a top-k" in done.err
    known = run(folder, way, "resume", flags=(*SETTINGS, "--start-epoch", "1"))
    assert "k 8 of 16" in known.err
    assert "weights were loaded" not in known.err


@pytest.mark.parametrize("way", WAYS)
def test_what_was_saved_with_the_plugin_loads_without(way, folder):
    assert run(folder, way).status == 0
    assert plain_run(folder, "sharded.py", way, "resume").status == 0


def test_other_settings_are_a_mismatch(folder):
    assert run(folder, "folder").status == 0
    done = run(folder, "folder", "resume", flags=("--gamma", "0.9", "--nu", "0.25"))
    assert done.status == 3
    assert "ResumeMismatch" in done.err
