"""`topk check` of short scripts that tests write, and what it printed of them."""

import re
import textwrap
from pathlib import Path

import launched
from launched import Done

GAN = '''
"""Nets and a loop for the short scripts of the tests."""
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


def g_loss(scores):
    return -scores.mean()


def train(D=None, epochs=3, rows=8, detach=True, loss=g_loss, stop=None):
    D = D or Critic()
    G = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    dtype = next(D.parameters()).dtype
    G.to(dtype)
    optD = torch.optim.SGD(D.parameters(), 1e-2)
    optG = torch.optim.SGD(G.parameters(), 1e-2)
    loader = DataLoader(torch.randn(4 * rows, 2, dtype=dtype) + 1, batch_size=rows, shuffle=True)
    steps = 0
    for _ in range(epochs):
        for x in loader:
            optD.zero_grad()
            fake = G(torch.randn(rows, 3, dtype=dtype))
            (D(fake.detach() if detach else fake).mean() - D(x).mean()).backward()
            optD.step()
            optG.zero_grad()
            loss(D(G(torch.randn(rows, 3, dtype=dtype)))).backward()
            optG.step()
            steps += 1
            if steps == stop:
                return
'''


def with_gan(folder: Path) -> Path:
    """The folder, with the gan.py that its scripts import."""
    (folder / "gan.py").write_text(GAN)
    return folder


def check(folder: Path, script: str, *flags: str, critic: str = "gan:Critic") -> Done:
    (folder / "train.py").write_text(textwrap.dedent(script))
    seam = ["--critic", critic] if critic else []
    return launched.run(folder, ["check", *seam, *flags, "--", "train.py"])


def error(done: Done) -> float:
    found = re.search(r"^gradient .* at most (\S+) \(bound", done.out, re.MULTILINE)
    assert found, done.out
    return float(found[1])


def line(done: Done, what: str) -> str:
    found = [text for text in done.out.splitlines() if text.startswith(what)]
    assert len(found) == 1, done.out + done.err
    return found[0].removeprefix(what).strip()


ADAPTER = """
from topk_plugin import Adapter, Wrap, hookimpl, scores_argument

@hookimpl
def topk_adapters():
    return [Adapter(
        name="tiny", upstream="somebody/tinygan", versions=("1",), seam="call", direction="{}",
        epoch="a pass", counter="none", tested="here",
        wraps=(Wrap("tinygan", "g_loss", "(scores)", scores_argument("scores")),),
    )]
"""


def check_tiny(folder: Path, loss: str, *flags: str, direction: str = "high") -> Done:
    """`topk check` of a repository whose generator's loss is ``loss``, with an adapter for it."""
    (folder / "tiny_adapter.py").write_text(ADAPTER.format(direction))
    info = folder / "tiny_adapter-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-adapter\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[topk_plugin]\ntiny = tiny_adapter\n")
    (folder / "tinygan.py").write_text(
        f"import torch\nfrom torch.nn.functional import *\ndef g_loss(scores):\n    return {loss}\n"
    )
    script = "import gan, tinygan\ngan.train(loss=lambda scores: 0.5 * tinygan.g_loss(scores))"
    return check(folder, script, "--adapter", "tiny", *flags, critic="")
