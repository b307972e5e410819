"""Loops for `topk run` with nothing named, and top-k by hand in them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from launched import Done, plain_run, run
from short_scripts import SETTINGS, largest_difference, script, weights, with_gan

LOOP = """
from gan import *
import copy, sys
from torch.nn.functional import cross_entropy, mse_loss, softplus

hand = ByHand()

def keep(scores):
    return hand.keep(scores) if sys.argv[1:] else scores

def adam(*networks):
    return torch.optim.Adam([p for network in networks for p in network.parameters()], 1e-2)

def net(into, out):
    return nn.Sequential(nn.Linear(into, 8), nn.Tanh(), nn.Linear(8, out))

class Net(nn.Module):
    def __init__(self, into, out):
        super().__init__()
        self.net = net(into, out)

    def forward(self, *x):
        return self.net(torch.cat(x, 1))

D, G = Critic(), make_generator()
opt_d, opt_g = adam(D), adam(G)

def fakes():
    return G(torch.randn(8, 3))

def critic_step(x):
    opt_d.zero_grad()
    (softplus(-D(x)).mean() + softplus(D(fakes().detach())).mean()).backward()
    opt_d.step()

def generator_step(extra=lambda fake: 0.0, then=()):
    for one in (opt_g, *then):
        one.zero_grad()
    fake = fakes()
    (softplus(-keep(D(fake))).mean() + extra(fake)).backward()
    for one in (opt_g, *then):
        one.step()

def passes(step, n=3):
    for _ in range(n):
        for x in loader:
            step(x)
        hand.decay()
"""


def with_loop(folder: Path, text: str) -> None:
    """A script that has LOOP before ``text``, in a folder with the gan.py that it imports."""
    script(with_gan(folder), LOOP + textwrap.dedent(text))


def unnamed(folder: Path, *arguments: str, flags: Sequence[str] = SETTINGS) -> Done:
    """``topk run FLAGS -- train.py ARGUMENTS`` in ``folder``."""
    return run(folder, ["run", *flags, "--", "train.py", *arguments])


def equals_by_hand(folder: Path, flags: Sequence[str] = ()) -> Done:
    """The run of a script, which was checked to end as it does with top-k by hand in it."""
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    done = unnamed(folder, flags=[*flags, *SETTINGS])
    assert done.status == 0, done.err
    assert largest_difference(plain, hand) > 1e-6
    assert largest_difference(weights(folder), hand) < 1e-12
    return done
