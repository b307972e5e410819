"""`topk demo` from end to end, with real child processes and the genuine torch-mimicry."""

import json
from pathlib import Path

import pytest
import torch

from topk_plugin import cli, demo
from topk_plugin.errors import ConfigError, TopKError

MISSING = [name for name in demo.NEEDED if demo.importlib.util.find_spec(name) is None]
needs_mimicry = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: {demo.INSTALL}"
)

BATCH = 256
STEPS_PER_EPOCH = 1797 // BATCH  # scikit-learn's digits, last partial batch dropped
TINY = ("--width", "2", "--batch-size", str(BATCH))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Threads that wait for a busy core make these short runs many times slower."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def weights(out: Path, arm: str, steps: int) -> dict[str, torch.Tensor]:
    """Of both networks and both optimizers, from mimicry's own checkpoints."""
    tensors = {}
    for net in ("netG", "netD"):
        folder = out / "runs" / arm / "seed-0" / "out" / "checkpoints" / net
        file = folder / f"{net}_{steps}_steps.pth"
        checkpoint = torch.load(file, weights_only=True)
        for name, tensor in checkpoint["model_state_dict"].items():
            tensors[f"{net}.{name}"] = tensor
        for number, state in checkpoint["optimizer_state_dict"]["state"].items():
            tensors[f"{net}.{number}"] = state["exp_avg"]
    return tensors


def log_of(out: Path) -> list[dict]:
    log = out / "runs" / "top-k" / "seed-0" / "topk.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def lines_with(text: str, *parts: str) -> list[str]:
    return [line for line in text.splitlines() if all(part in line for part in parts)]


@needs_mimicry
def test_first_epoch_writes_everything_and_changes_no_bit(tmp_path, capsys):
    from matplotlib.image import imread

    steps = 3
    assert demo.run_demo(tmp_path, steps, arguments=TINY) == 0

    output = capsys.readouterr().out
    [active] = lines_with(output, "] top-k ACTIVE")
    assert active.startswith("[top-k] ")
    assert f"k {BATCH} of {BATCH}" in active
    [verdict] = lines_with(output, "top-k verdict", f"{steps} generator steps")
    assert verdict.startswith("[top-k] ")
    for arm in ("plain", "top-k"):
        assert len(lines_with(output, f"[{arm}] ", "Global Step")) == steps  # progress
        assert lines_with(output, f"[{arm}] ", "Training Ended")
        folder = tmp_path / "runs" / arm / "seed-0" / "out"
        assert imread(folder / "samples.png").shape[:2] == (274, 274)  # 8 x (32 + 2) + 2
        assert len([*(folder / "samples").iterdir()]) == 1000

    assert "each difference is exactly 0: top-k changed nothing" in output
    assert (tmp_path / "report.md").read_text() in output
    for name in ("samples.png", "topk.png"):
        pixels = imread(tmp_path / name)
        assert pixels.shape[0] >= 400
        assert pixels.shape[1] >= 800
        assert pixels[..., :3].std() > 0.05  # not a blank page

    records = log_of(tmp_path)
    assert len(records) == steps
    assert {(row["epoch"], row["batch"], row["k"]) for row in records} == {(0, BATCH, BATCH)}

    plain, gated = (weights(tmp_path, arm, steps) for arm in ("plain", "top-k"))
    assert plain.keys() == gated.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, gated[name]), name


@pytest.mark.slow
@needs_mimicry
def test_second_epoch_keeps_fewer_rows_and_an_earlier_demo_is_not_resumed(tmp_path, capsys):
    (tmp_path / "trial.json").write_text(json.dumps({"script": [str(demo.SCRIPT)], "flags": []}))
    for arm in ("plain", "top-k"):  # what an earlier demo left: mimicry would refuse or resume it
        folder = tmp_path / "runs" / arm / "seed-0" / "out"
        folder.mkdir(parents=True)
        (folder / "params.json").write_text('{"num_steps": 2}')
        for net in ("netG", "netD"):
            file = folder / "checkpoints" / net / f"{net}_2_steps.pth"
            file.parent.mkdir(parents=True)
            file.touch()

    steps = STEPS_PER_EPOCH + 3
    assert demo.run_demo(tmp_path, steps, gamma=0.5, arguments=TINY) == 0
    fresh = lines_with(capsys.readouterr().out, "Starting training from global step 0")
    assert sorted(line.split()[0] for line in fresh) == ["[plain]", "[top-k]"]

    records = log_of(tmp_path)
    assert [row["k"] for row in records] == [BATCH] * STEPS_PER_EPOCH + [BATCH // 2] * 3
    for row in records[STEPS_PER_EPOCH:]:
        assert row["kept_score"] >= row["threshold"] >= row["dropped_score"]

    plain, gated = (weights(tmp_path, arm, steps) for arm in ("plain", "top-k"))
    assert not all(torch.equal(plain[name], gated[name]) for name in plain)


def test_script_knows_nothing_of_topk():
    source = demo.SCRIPT.read_text().lower()
    assert "topk" not in source
    assert "top-k" not in source


@pytest.mark.slow
def test_failing_child_passes_its_status_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NEEDED", ("matplotlib",))
    monkeypatch.setattr(demo, "distances", lambda features: ("distance", None))
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(7)\n")
    monkeypatch.setattr(demo, "SCRIPT", script)
    assert demo.run_demo(tmp_path / "out") == 7
    assert "plain arm failed with exit status 7" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["runs/top-k/thesis.txt", "samples.png", "notes.txt"])
def test_what_no_demo_made_is_refused_and_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "NEEDED", ())
    monkeypatch.setattr(demo, "distances", lambda features: ("distance", None))
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("chapter 1")
    (tmp_path / "notes.txt").touch()
    known = name.partition("/")[0] in demo.MADE
    why = "is there and no demo made it" if known else "holds files and no trial"
    with pytest.raises(ConfigError, match=why):
        demo.run_demo(tmp_path / "out")
    assert mine.read_text() == "chapter 1"
    with pytest.raises(ConfigError, match="notes.txt is no folder"):
        demo.run_demo(tmp_path / "notes.txt")


def test_the_trial_of_another_script_is_no_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "NEEDED", ())
    (tmp_path / "trial.json").write_text(json.dumps({"script": ["train.py"], "flags": []}))
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="no demo made it"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "runs").is_dir()


def test_the_settings_around_it_are_not_the_demos(monkeypatch):
    monkeypatch.setenv("TOPK_GAMMA", "0.1")
    with demo._environment():
        assert "TOPK_GAMMA" not in demo.os.environ
    assert demo.os.environ["TOPK_GAMMA"] == "0.1"


@pytest.mark.parametrize("name", demo.NEEDED)
def test_missing_package_names_the_install_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda module: None if module == name else object()
    )
    with pytest.raises(TopKError) as error:
        demo.run_demo(tmp_path)
    assert str(error.value) == (
        f"topk demo needs {name}, which is not installed: pip install 'topk_plugin[demo]' && "
        "pip install --no-deps torch-mimicry==0.1.16"
    )


@pytest.mark.parametrize("what", ["steps", "seeds"])
def test_none_of_them_is_a_config_error(tmp_path, what):
    with pytest.raises(ConfigError, match=f"{what} is 0"):
        demo.run_demo(tmp_path, **{what: 0})


def test_no_command_takes_a_flag_for_another():
    """As --seed would be for --seeds."""
    [commands] = [a.choices for a in cli._parser()._actions if isinstance(a.choices, dict)]
    assert {"demo", "run", "report"} <= {*commands}
    assert not [name for name, parser in commands.items() if parser.allow_abbrev]
