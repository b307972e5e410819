"""A loss that couples the rows of a batch is told, once, and others are not."""

import re
from pathlib import Path

import pytest
import torch
from launched import plain_run, run, topk_run
from torches import UNREAD, reads_shapes

CASES = Path(__file__).parents[1] / "cases"
SCRIPT = str(CASES / "generator_losses.py")
COUPLED = {
    "average": "BinaryCrossEntropyWithLogitsBackward0",
    "average_hinge": "ReluBackward0",
    "softmax": "LogBackward0",
    "std": "StdBackward0",
    "logsumexp": "LogsumexpBackward0",
}
OTHERS = ["hinge", "softplus", "sum", "lsgan", "wgan", "bce", "labels", "paired"]
FLAGS = ("--gamma", "0.5", "--nu", "0.25")


@reads_shapes
@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_rows_is_told_once(tmp_path, name):
    """It was gated by masks, which is not the loss of the kept scores, and nothing said so."""
    done = topk_run(tmp_path, SCRIPT, name, "3", critic="small:Judge", flags=FLAGS)
    assert done.status == 0, done.err
    operation = COUPLED[name]
    note = f"top-k note: the loss couples the rows of a batch ({operation}): "
    assert done.err.count(note) == 1
    assert "`topk check` says by how much it differs" in done.err
    assert done.err.count("couples the rows") == 2
    assert f"; its loss couples the rows of a batch ({operation})" in done.err


@pytest.mark.parametrize("name", OTHERS)
def test_losses_that_add_up_over_samples_are_not_told(tmp_path, name):
    done = topk_run(tmp_path, SCRIPT, name, "2", critic="small:Judge", flags=FLAGS)
    assert done.status == 0, done.err
    assert "couples" not in done.err.replace(UNREAD, "")
    assert UNREAD in done.err


@reads_shapes
def test_it_is_told_for_each_training(tmp_path):
    (tmp_path / "sweep.py").write_text(
        f"import sys\nsys.path.insert(0, {str(CASES)!r})\n"
        """
import torch
from generator_losses import LOSSES
from small import loader, nets

for name in ("hinge", "std", "logsumexp", "std"):
    m, j, om, oj = nets()
    for _ in range(2):
        for (x,) in loader:
            oj.zero_grad()
            (j(m(torch.randn(len(x), 4)).detach()).mean() - j(x).mean()).backward()
            oj.step()
            om.zero_grad()
            LOSSES[name](j(x).detach(), j(m(torch.randn(len(x), 4)))).backward()
            om.step()
"""
    )
    done = topk_run(tmp_path, "sweep.py", critic="small:Judge", flags=FLAGS)
    assert done.status == 0, done.err
    notes = re.findall(r"^top-k note: .*\((\w+)\)", done.err, re.MULTILINE)
    assert notes == ["StdBackward0", "LogsumexpBackward0"]
    said = re.findall(
        r"^top-k verdict, training (\d): .* its loss couples .*\((\w+)\)", done.err, re.M
    )
    assert said == [("2", "StdBackward0"), ("3", "LogsumexpBackward0"), ("4", "StdBackward0")]


def test_looking_changes_nothing(tmp_path):
    done = topk_run(
        tmp_path, SCRIPT, "average", "2", "run.pt", critic="small:Judge", flags=("--gamma", "1")
    )
    assert done.status == 0, done.err
    assert plain_run(tmp_path, SCRIPT, "average", "2", "plain.pt").status == 0
    found, plain = (torch.load(tmp_path / f"{name}.pt") for name in ("run", "plain"))
    for one, other in zip(found, plain, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


@reads_shapes
def test_a_process_that_was_started_tells_it_too(tmp_path):
    (tmp_path / "starts.py").write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, {SCRIPT!r}, 'std', '1'], check=True)\n"
    )
    done = run(tmp_path, ["run", "--critic", "small:Judge", *FLAGS, "--", "starts.py"])
    assert done.status == 0, done.err
    assert re.search(r"top-k \(process \d+\) note: the loss couples", done.err), done.err
