"""Kinds of scripts that have to go on holding: hydra, Lightning, ranks, checkpoints, optimizers.

Each ends with the weights of top-k by hand, in float64.
"""

import shutil
from pathlib import Path

import pytest
import torch
from launched import Done, run

CASES = Path(__file__).parents[1] / "cases"
SETTINGS = ("--gamma", "0.5", "--nu", "0.25")
VERDICT = (
    "verdict: 12 generator steps gated, 80 of 192 rows dropped, 3 epochs ended, last k 4 of 16"
)


def weights(file: Path) -> list[torch.Tensor]:
    return [value for state in torch.load(file) for value in state.values()]


def furthest(one: Path, other: Path) -> float:
    pairs = zip(weights(one), weights(other), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def check(folder: Path, critic: str, *command: str, files=("weights.pt",), preload=()) -> Done:
    """Run it under `topk run`, by hand, and without top-k; the first of these."""
    found = {}
    for kind, flags, env in (
        ("plain", ["--no-enabled"], {}),
        ("hand", ["--no-enabled"], {"HAND": "1"}),
        ("gated", ["--log", "log.jsonl"], {}),
    ):
        words = ["run", "--critic", critic, *SETTINGS, *flags, "--", *command]
        env = {"PYTHONPATH": str(CASES), **env}
        done = run(folder, words, env=env, path=[str(CASES)], preload=preload)
        assert done.status == 0, done.err
        assert ("top-k" in done.err) == (kind == "gated")
        found[kind] = [folder / f"{n} {kind}" for n in range(len(files))]
        for file, kept in zip(files, found[kind], strict=True):
            shutil.move(folder / file, kept)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 12
    for gated, hand, plain in zip(found["gated"], found["hand"], found["plain"], strict=True):
        assert furthest(gated, hand) <= 1e-9
        assert furthest(plain, hand) > 1e-6, "top-k changes nothing here"
    return done


def test_hydra_with_a_changed_folder_and_a_relative_import(tmp_path):
    pytest.importorskip("hydra")
    shutil.copytree(CASES / "hydra_app", tmp_path / "hydra_app")
    command = ("-m", "hydra_app.train", "epochs=3")
    done = check(tmp_path, "hydra_app.nets:Critic", *command, files=["outputs/weights.pt"])
    assert VERDICT in done.err


@pytest.mark.slow
@pytest.mark.parametrize("toggles", ["toggles", "as they are"])
def test_lightning_with_manual_optimisation(tmp_path, toggles):
    pytest.importorskip("lightning")
    script = str(CASES / "lightning_manual.py")
    done = check(tmp_path, "small:Judge", script, toggles, preload=["lightning"])
    assert VERDICT in done.err


@pytest.mark.slow
def test_ranks_with_batch_norm_that_torchrun_starts(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command.append(str(CASES / "batchnorm_ranks.py"))
    done = check(
        tmp_path, "__main__:Critic", *command, files=["weights of 0.pt", "weights of 1.pt"]
    )
    assert "verdict: 12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended" in done.err
    assert "verdict: 2 processes gated, 24 generator steps" in done.err


def test_non_reentrant_checkpoints_around_both_networks(tmp_path):
    done = check(tmp_path, "small:Judge", str(CASES / "checkpointed_nets.py"))
    assert VERDICT in done.err


@pytest.mark.parametrize("kind", ["Lookahead", "Wrapper", "Lars", "Clipped", "Zero"])
def test_optimizers_that_are_not_torchs_own(tmp_path, kind):
    done = check(tmp_path, "small:Judge", str(CASES / "other_optimizers.py"), kind)
    assert VERDICT in done.err
