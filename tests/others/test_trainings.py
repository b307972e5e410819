"""Trainings by others with nothing named, against top-k by hand; and what is said of them."""

import json
import re
import subprocess
import sys
import textwrap

import pytest
from others import data
from others.rows import HERE, OURS, Origin, Row, Wrap
from others.table import FARTHEST, ROWS, lines
from others.trial import SAME, compare
from pages import ROOT

SCRIPT = """
import argparse, torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

parser = argparse.ArgumentParser()
parser.add_argument("--n_epochs", type=int)
opt = parser.parse_args()
D, G = nn.Linear(784, 1), nn.Linear(2, 784)
opt_d, opt_g = (torch.optim.SGD(n.parameters(), 1e-2) for n in (D, G))
mnist = datasets.MNIST("../../data/mnist", download=True, transform=transforms.ToTensor())
for epoch in range(opt.n_epochs):
    for x, _ in DataLoader(mnist, 8):
        opt_d.zero_grad()
        fake = G(torch.randn(8, 2).type(torch.FloatTensor).cuda())
        (D(fake.detach()).mean() - D(x.flatten(1)).mean()).backward()
        opt_d.step()
        opt_g.zero_grad()
        (-D(fake).mean()).backward()
        opt_g.step()
"""


NAMES = [row.name for row in ROWS]


def trainings():
    """Each with its marks: one of a package does not need a checkout, and takes long."""
    for row in ROWS:
        marks = [pytest.mark.upstream] + [pytest.mark.slow] * ("/" not in row.origin.name)
        yield pytest.param(row, id=row.name, marks=marks)


@pytest.mark.parametrize("row", [*trainings()])
def test_a_training_with_nothing_named_is_top_k_by_hand(row, tmp_path):
    if missing := row.origin.missing():
        pytest.skip(f"not at hand: {missing}")
    outcome = compare(row, tmp_path / "run")
    assert not outcome.wrong, outcome.wrong


@pytest.mark.slow
def test_a_script_is_told_from_top_k_in_another_direction(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPK_UPSTREAMS", str(tmp_path))
    source = tmp_path / "somebody+mine" / "gans" / "mine"  # it reads ../../data
    source.mkdir(parents=True)
    (source / "mine.py").write_text(textwrap.dedent(SCRIPT))
    wrap = Wrap("D(fake)", low=True)
    row = Row(
        "mine", "--n_epochs 3", data.mnist, (wrap,), found="D (Linear)",
        script="gans/mine/mine.py", origin=Origin("somebody/mine", "1" * 40, own_folder=True),
        shims=("pytorch_gan",),
    )  # fmt: skip
    outcome = compare(row, tmp_path / "run")
    assert outcome.wrong == "not top-k by hand"
    assert (outcome.direction, outcome.dropped, outcome.epochs) == ("high", "20 of 96", "3")
    assert outcome.changed > 1e-3
    assert outcome.error > SAME


def test_by_hand_in_a_module_and_by_steps(tmp_path):
    """The rows that have a gradient: all in the first pass of two steps, then 4 of 5, then 3."""
    (tmp_path / "networks.py").write_text("def scored(critic, x):\n    return critic(x)\n")
    script = """
    import torch
    from networks import scored
    for _ in range(6):
        x = torch.arange(5.0).requires_grad_()
        scored(lambda x: x * 1, x).mean().backward()
        print(*x.grad.mul(60).round().int().tolist())
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    wraps = json.dumps([Wrap("critic(x)", file="networks.py")._asdict()])
    command = [sys.executable, str(HERE / "by_hand.py"), "2", wraps, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    passes = ["12 12 12 12 12", "0 15 15 15 15", "0 0 20 20 20"]
    assert done.stdout.split("\n") == [one for one in passes for _ in "ab"] + [""]
    command[3] = wraps.replace("networks.py", "network.py")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "never imported: {'network.py'}" in done.stderr


def test_the_data_are_well_formed():
    assert len({*NAMES}) == len(NAMES)
    for row in ROWS:
        assert row.asks or row.found, row.name
        assert row.wraps or (row.asks and not row.critic), row.name
        assert len({wrap.low for wrap in row.wraps}) <= 1, row.name
        assert all(wrap.file == "" or not wrap.file.startswith("/") for wrap in row.wraps)
        assert re.fullmatch("[0-9a-f]{40}" if "/" in row.origin.name else r"[\d.]+",
                            row.origin.version), row.name  # fmt: skip
        assert isinstance(row.epoch, int) or compile(row.epoch, row.name, "eval")
    loops = {row.script for row in ROWS if row.script.startswith(OURS)}
    assert {path.relative_to(HERE).as_posix() for path in (HERE / OURS).glob("*.py")} == loops
    shims = {shim for row in ROWS for shim in row.shims}
    assert {path.stem for path in (HERE / "startup" / "shims_for_others").glob("*.py")} == shims
    assert {*FARTHEST} == {row.origin.name for row in ROWS}
    assert max(FARTHEST.values()) < SAME


def test_the_pages_table_is_that_of_the_data():
    page = (ROOT / "adapters" / "README.md").read_text()
    table = page.split("## Verified without an adapter")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows == lines()
    assert sum(row.origin.own_folder for row in ROWS) >= 25
    assert len(rows) >= 9


def test_what_is_not_at_hand_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TOPK_UPSTREAMS", str(tmp_path))
    monkeypatch.setenv("OTHERS_PACKAGES", str(tmp_path / "extra"))
    origin = Origin("somebody/gan", "1" * 40, ("no_such_module",))
    assert origin.missing() == (
        "a checkout of somebody/gan as somebody+gan in the folder TOPK_UPSTREAMS;"
        " modules no_such_module, here or in a folder that OTHERS_PACKAGES names"
    )
    (tmp_path / "somebody+gan").mkdir()
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "no_such_module.py").write_text("")
    assert origin.missing() == ""
    assert origin.checkout() == tmp_path / "somebody+gan"
