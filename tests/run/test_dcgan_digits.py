"""A DCGAN script that knows nothing of top-k, plainly and under `topk run`, from the same seed."""

import json
from pathlib import Path

import pytest
import torch
from launched import plain_run, topk_run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).with_name("dcgan_digits.py")
BATCH = 64
STEPS_PER_EPOCH = 1797 // BATCH  # scikit-learn's digits, last partial batch dropped


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    nets = torch.load(checkpoint, weights_only=True)
    return {f"{net}.{name}": value for net in nets for name, value in nets[net].items()}


def run_both(folder: Path, epochs: int, gamma: float) -> tuple[dict, dict, list[dict], str]:
    """Weights of the plain and of the top-k run, the latter's log, and what it said."""
    arguments = [str(SCRIPT), "--epochs", str(epochs), "--out"]
    plain = plain_run(folder, *arguments, "plain")
    assert plain.status == 0, plain.err
    flags = ["--gamma", str(gamma), "--nu", "0.5", "--log", "log.jsonl"]
    gated = topk_run(folder, *arguments, "top-k", flags=flags, critic="__main__:Critic")
    assert gated.status == 0, gated.err
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    files = (folder / arm / "checkpoint.pt" for arm in ("plain", "top-k"))
    return *map(weights, files), records, gated.err


@pytest.mark.slow
def test_first_epoch_changes_no_bit(tmp_path):
    plain, gated, records, said = run_both(tmp_path, epochs=1, gamma=0.98)
    assert "top-k ACTIVE: critic __main__:Critic" in said
    assert f"k {BATCH} of {BATCH}" in said
    assert f"{STEPS_PER_EPOCH} generator steps" in said

    assert len(records) == STEPS_PER_EPOCH
    assert {(row["epoch"], row["batch"], row["k"]) for row in records} == {(0, BATCH, BATCH)}
    assert plain.keys() == gated.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, gated[name]), name


@pytest.mark.slow
def test_second_epoch_keeps_fewer_rows_and_trains_differently(tmp_path):
    plain, gated, records, _ = run_both(tmp_path, epochs=2, gamma=0.5)
    assert [row["k"] for row in records] == [64] * STEPS_PER_EPOCH + [32] * STEPS_PER_EPOCH
    for row in records[STEPS_PER_EPOCH:]:
        assert row["kept_score"] >= row["threshold"] >= row["dropped_score"]
    assert not all(torch.equal(plain[name], gated[name]) for name in plain)
