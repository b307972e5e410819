"""`topk demo` from end to end, with real child processes."""

import json
from pathlib import Path

import pytest
import torch

from topk_plugin import demo
from topk_plugin.errors import ConfigError, TopKError

pytest.importorskip("sklearn")
image = pytest.importorskip("matplotlib.image")

BATCH = 64
STEPS_PER_EPOCH = 1797 // BATCH  # scikit-learn's digits, last partial batch dropped


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Threads that wait for a busy core make these short runs many times slower."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def weights(out: Path, arm: str) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(out / arm / "checkpoint.pt", weights_only=True)
    return {
        f"{network}.{name}": tensor
        for network, state in checkpoint.items()
        for name, tensor in state.items()
    }


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "topk.jsonl").read_text().splitlines()]


def test_one_epoch_writes_everything_and_changes_no_bit(tmp_path, capsys):
    assert demo.run_demo(tmp_path, epochs=1) == 0

    output = capsys.readouterr().out
    active = [line for line in output.splitlines() if "top-k ACTIVE" in line]
    assert len(active) == 1
    assert active[0].startswith("[top-k] ")
    assert "__main__:Critic" in active[0]
    assert f"k {BATCH} of {BATCH}" in active[0]
    verdict = [line for line in output.splitlines() if f"{STEPS_PER_EPOCH} generator steps" in line]
    assert any(line.startswith("[top-k] ") for line in verdict)
    assert "[plain] epoch   1/1" in output
    assert "[top-k] epoch   1/1" in output

    for name in ("samples.png", "topk.png"):
        pixels = image.imread(tmp_path / name)
        assert pixels.shape[0] >= 400
        assert pixels.shape[1] >= 800
        assert pixels[..., :3].std() > 0.05  # not a blank page

    records = log_of(tmp_path)
    assert len(records) == STEPS_PER_EPOCH
    assert {(row["epoch"], row["batch"], row["k"]) for row in records} == {(0, BATCH, BATCH)}

    plain, gated = weights(tmp_path, "plain"), weights(tmp_path, "top-k")
    assert plain.keys() == gated.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, gated[name]), name


def test_second_epoch_keeps_fewer_rows_and_trains_differently(tmp_path):
    assert demo.run_demo(tmp_path, epochs=2, gamma=0.5) == 0

    records = log_of(tmp_path)
    assert [row["k"] for row in records] == [64] * STEPS_PER_EPOCH + [32] * STEPS_PER_EPOCH
    for row in records[STEPS_PER_EPOCH:]:
        assert row["kept_score"] >= row["threshold"] >= row["dropped_score"]

    plain, gated = weights(tmp_path, "plain"), weights(tmp_path, "top-k")
    assert not all(torch.equal(plain[name], gated[name]) for name in plain)


def test_script_knows_nothing_of_topk():
    source = demo.SCRIPT.read_text().lower()
    assert "topk" not in source
    assert "top-k" not in source


def test_failing_child_passes_its_status_on(tmp_path, monkeypatch, capsys):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(7)\n")
    monkeypatch.setattr(demo, "SCRIPT", script)
    assert demo.run_demo(tmp_path / "out") == 7
    assert "plain arm failed with exit status 7" in capsys.readouterr().err


def test_missing_package_names_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TopKError, match=r"pip install 'topk_plugin\[demo\]'"):
        demo.run_demo(tmp_path)


def test_no_epochs_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="epochs is 0"):
        demo.run_demo(tmp_path, epochs=0)
