"""A script that is cut by a checkpoint and goes on in another process, and one that is not."""

import json
import textwrap
from pathlib import Path

import torch
from launched import Done, topk_run

GAN = '''
"""A loop of three epochs that starts at --start and knows nothing of top-k."""
import os, sys
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


G = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
data = torch.randn(32, 2) + 1


def optimizers(G, D):
    return (torch.optim.Adam(n.parameters(), 1e-2) for n in (G, D))


def epoch(G, D, optG, optD, n, loader=None):
    torch.manual_seed(100 + n)
    for x in loader or DataLoader(data, batch_size=8, shuffle=True):
        step(G, D, optG, optD, x)


def step(G, D, optG, optD, x):
    optD.zero_grad()
    (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward()
    optD.step()
    optG.zero_grad()
    (-D(G(torch.randn(8, 3))).mean()).backward()
    optG.step()


first, last = int(sys.argv[1]), int(sys.argv[2])  # epochs
'''
FLAGS = ("--gamma", "0.8", "--nu", "0.25")  # 8 6 5 4 3 2 of 8 rows
KS = [8] * 4 + [6] * 4 + [5] * 4 + [4] * 4 + [3] * 4 + [2] * 4

LOOP = """
for n in range(first, last):
    epoch(G, D, optG, optD, n)
"""
START = """
from gan import *
D = Critic()
optG, optD = optimizers(G, D)
"""


CLEAN = (
    START
    + """
if first:
    old = torch.load("c.pt", weights_only=True)
    for name, it in dict(G=G, D=D, optG=optG, optD=optD).items(): it.load_state_dict(old[name])
"""
    + LOOP
    + """
torch.save({"G": G.state_dict(), "D": D.state_dict(), "optG": optG.state_dict(),
            "optD": optD.state_dict(), "epoch": last}, "c.pt")
"""
)


def with_gan(folder: Path) -> Path:
    """The folder, with the gan.py that its scripts import."""
    (folder / "gan.py").write_text(GAN)
    return folder


def write(folder: Path, text: str) -> None:
    """The script, which ends by writing the weights it ends with."""
    text = textwrap.dedent(text) + "\nsd = {**G.state_dict(), **D.state_dict()}\n"
    (folder / "train.py").write_text(
        text + 'torch.save(list(sd.values()), f"w{first}-{last}.pt")\n'
    )


def go(
    folder: Path, first: int, last: int, *flags: str, critic: str = "gan:Critic"
) -> tuple[Done, list[int]]:
    """Epochs ``first`` to ``last`` under `topk run`; also the k of each generator step."""
    given = (*FLAGS, *flags, "--log", "log.jsonl")
    done = topk_run(folder, "train.py", str(first), str(last), flags=given, critic=critic)
    lines = (folder / "log.jsonl").read_text().splitlines()
    return done, [json.loads(line)["k"] for line in lines]


def weights(folder: Path, first: int, last: int) -> list[torch.Tensor]:
    return torch.load(folder / f"w{first}-{last}.pt", weights_only=True)


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_resume(folder: Path, critic: str = "gan:Critic", *resumed: str) -> Done:
    """Six epochs are three, a checkpoint, another process, and three more."""
    whole, ks = go(folder, 0, 6, critic=critic)
    assert whole.status == 0, whole.err
    assert ks == KS
    half, ks = go(folder, 0, 3, critic=critic)
    assert half.status == 0, half.err
    assert ks == KS[:12]
    done, ks = go(folder, 3, 6, *resumed, critic=critic)
    assert done.status == 0, done.err
    assert ks == KS[12:]
    assert equal(weights(folder, 3, 6), weights(folder, 0, 6))
    assert not equal(weights(folder, 0, 3), weights(folder, 0, 6))
    assert "Warning" not in done.err
    return done
