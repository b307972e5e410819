"""Nets, data and a loop for short scripts that tests write; the weights that they end with."""

import subprocess
import sys
import textwrap
from pathlib import Path

import launched
import torch
from launched import Done

GAN = '''
"""Nets, data and a loop, for the short scripts of the tests."""
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


def make_generator():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


loader = DataLoader(torch.randn(32, 2) + 1, batch_size=8, shuffle=True)


def train(D, G, epochs=3, keep=lambda scores: scores, decay=lambda: None):
    """keep and decay are for those who write top-k by hand."""
    optD = torch.optim.Adam(D.parameters(), 1e-2)
    optG = torch.optim.Adam(G.parameters(), 1e-2)
    for _ in range(epochs):
        for x in loader:
            optD.zero_grad()
            (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward()
            optD.step()
            optG.zero_grad()
            (-keep(D(G(torch.randn(8, 3)))).mean()).backward()
            optG.step()
        decay()


def write(*modules):
    torch.save([m.state_dict() for m in modules], "weights.pt")


class ByHand:
    """The paper's snippet, for gamma 0.5 and nu 0.25."""

    def __init__(self, largest=True):
        self.f, self.largest = 1.0, largest

    def keep(self, scores):
        k = max(1, int(self.f * len(scores)))
        return scores.flatten().topk(k, largest=self.largest).values

    def decay(self):
        self.f = max(self.f * 0.5, 0.25)
'''

SETTINGS = ("--gamma", "0.5", "--nu", "0.25")
TRAIN_AND_WRITE = """
from gan import *
D, G = Critic(), make_generator()
train(D, G)
write(D, G)
"""
TRAIN = "from gan import *\ntrain(Critic(), make_generator())\n"


def with_gan(folder: Path) -> Path:
    """The folder, with the gan.py that its scripts import."""
    (folder / "gan.py").write_text(GAN)
    return folder


def script(folder: Path, text: str, name: str = "train.py") -> str:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(textwrap.dedent(text))
    return name


def weights(folder: Path) -> list[torch.Tensor]:
    saved = torch.load(folder / "weights.pt", weights_only=True)
    return [value for state in saved for value in state.values()]


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def python(folder: Path, *arguments: str) -> Done:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=launched.ENVIRONMENT,
    )
    return Done(done.returncode, done.stdout, done.stderr)
