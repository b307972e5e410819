"""`topk run --scope global` with torchrun and an unedited script, against one process by hand."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from launched import ENVIRONMENT, Done, plain_run, run, topk_run

SCRIPT = str(Path(__file__).parents[1] / "cases" / "competing_ranks.py")
SETTINGS = ("--gamma", "0.5", "--nu", "0.25", "--scope", "global")


fsdp2 = pytest.mark.skipif(
    find_spec("torch.distributed.fsdp._fully_shard") is None,
    reason="torch 2.6 has it at this place",
)


def torchrun(ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def weights(folder: Path) -> torch.Tensor:
    states = torch.load(folder / "weights.pt")
    return torch.cat([value.flatten() for state in states for value in state.values()])


def by_hand(folder: Path, *words: str) -> torch.Tensor:
    """Of one process with all rows, and that top-k changes something."""
    plain_run(folder, SCRIPT, *words)
    plain = weights(folder)
    done = run(folder, [SCRIPT, *words], env={"HAND": "1"}, plain=True)
    assert done.status == 0, done.err
    assert (weights(folder) - plain).abs().max() > 1e-4
    return weights(folder)


@pytest.mark.parametrize(
    ("way", "sizes", "start"),
    [
        ("detached", "8,8", "fork"),
        ("undetached", "5,3", "fork"),
        pytest.param("undetached", "3,6,3", "torchrun", marks=pytest.mark.slow),
        ("heads", "4,4,4", "fork"),
        ("heads", "4,4,4,4", "fork"),
        ("frozen", "5,3,6,2", "fork"),
        pytest.param("fsdp2", "5,3", "fork", marks=fsdp2),
        pytest.param("undetached, fsdp2, nested", "3,4,5", "fork", marks=fsdp2),
    ],
)
def test_ranks_end_with_the_weights_of_one_process(tmp_path, way, sizes, start):
    ranks, expected = len(sizes.split(",")), by_hand(tmp_path, way, sizes)
    command = [SCRIPT, way, sizes, "fork"] if start == "fork" else [*torchrun(ranks), SCRIPT]
    command += [] if start == "fork" else [way, sizes]
    done = topk_run(tmp_path, *command, critic="__main__:Critic", flags=SETTINGS)
    assert done.status == 0, done.err
    assert (weights(tmp_path) - expected).abs().max() <= 1e-12
    first, rows = sizes.split(",")[0], sum(map(int, sizes.split(",")))
    assert f"k {first} of {first} on this rank, the rows of {ranks} ranks compete" in done.err
    assert f"last k {rows // 4} of {rows} over {ranks} ranks, " in done.err
    assert f"{ranks} processes gated, {16 * ranks} generator steps" in done.err


def test_nothing_named_and_topk_run_inside_torchrun(tmp_path):
    expected = by_hand(tmp_path, "detached", "5,3")
    command = [sys.executable, *torchrun(2), "-m", "--", "topk_plugin", "run", *SETTINGS, "--"]
    done = Done(
        *_finished([*command, SCRIPT, "detached", "5,3"], tmp_path),
    )
    assert done.status == 0, done.err
    assert (weights(tmp_path) - expected).abs().max() <= 1e-12
    assert "ACTIVE: found critic __main__:Critic" in done.err


@fsdp2
@pytest.mark.parametrize("way", ["fsdp2", "undetached, fsdp2, nested"])
def test_a_sharded_critic_that_nobody_named(tmp_path, way):
    expected = by_hand(tmp_path, way, "5,3")
    done = run(tmp_path, ["run", *SETTINGS, "--", SCRIPT, way, "5,3", "fork"])
    assert done.status == 0, done.err
    assert (weights(tmp_path) - expected).abs().max() <= 1e-12
    assert "ACTIVE: found critic " in done.err


def _finished(command: list[str], folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    return done.returncode, done.stdout, done.stderr


def test_one_process_says_that_it_is_one(tmp_path):
    done = topk_run(tmp_path, SCRIPT, "detached", "8", critic="__main__:Critic", flags=SETTINGS)
    assert done.status == 0, done.err
    assert "k 8 of 8 (scope global, one process), decays" in done.err
    assert (weights(tmp_path) - by_hand(tmp_path, "detached", "8")).abs().max() <= 1e-12


def test_processes_without_a_group_are_refused(tmp_path):
    env = {"WORLD_SIZE": "2", "RANK": "0"}
    (tmp_path / "train.py").write_text(
        "import torch\nfrom topk_plugin import TopK\n"
        "TopK(scope='global')(torch.zeros(4, requires_grad=True))\n"
    )
    done = run(tmp_path, ["train.py"], env=env, plain=True)
    assert done.status != 0
    assert "found 2 processes (WORLD_SIZE) and no process group" in done.err
    assert "init_process_group" in done.err
    assert "WORLD_SIZE" not in os.environ
