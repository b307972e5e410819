"""Every script of PyTorch-GAN with nothing named, against top-k by hand."""

import textwrap

import pytest
from others import data
from others.pytorch_gan import REPOSITORY, ROWS, Row, Wrap
from others.trial import SAME, checkout, compare

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


@pytest.mark.upstream
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_script_with_nothing_named_is_top_k_by_hand(row, tmp_path):
    source = checkout()
    if source is None:
        where = REPOSITORY.replace("/", "+")
        pytest.skip(f"no checkout {where} in the folder TOPK_UPSTREAMS")
    outcome = compare(row, tmp_path, source)
    assert not outcome.wrong, outcome.wrong


@pytest.mark.slow
def test_a_script_is_told_from_top_k_in_another_direction(tmp_path):
    source = tmp_path / "checkout" / "implementations" / "mine"
    source.mkdir(parents=True)
    (source / "mine.py").write_text(textwrap.dedent(SCRIPT))
    wrap = Wrap("D(fake)", low=True)
    row = Row("mine", "--n_epochs 3", data.mnist, (wrap,), found="D (Linear)")
    outcome = compare(row, tmp_path / "run", tmp_path / "checkout")
    assert outcome.wrong == "not top-k by hand"
    assert (outcome.direction, outcome.dropped) == ("high", "20 of 96")
    assert outcome.changed > 1e-3
    assert outcome.error > SAME
