"""What the scripts of adapters for checkouts share; lies beside them as topk_drive.py."""

import math
import os
import sys
import types
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from topk_plugin.source.in_memory import code_of

torch.set_num_threads(1)
CHANNELS = ("in_channels", "out_channels", "num_features")


def execute(script, *arguments, **names):
    """Runs a script as ``python SCRIPT ARGUMENTS`` does, edited as ``topk run`` has it."""
    path = os.path.abspath(script)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(path)
    main = types.ModuleType("__main__")
    vars(main).update(__file__=path, **names)
    sys.modules["__main__"] = main
    code = code_of(Path(path)) or compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    exec(code, vars(main))
    return main


def k_of(epoch, batch):
    """k after ``epoch`` epochs, for gamma 0.75 and nu 0.5."""
    return max(1, math.floor(max(0.75**epoch, 0.5) * batch + 1e-9))


def digits(number, size, channels=3):
    """``number`` digits as (number, channels, size, size) in [-1, 1], and their labels."""
    data = load_digits()
    images = torch.tensor(data.images[:number], dtype=torch.get_default_dtype())[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=size, mode="bilinear")
    return images.expand(-1, channels, -1, -1), torch.tensor(data.target[:number])


def narrow(*layers, factor=16, keep=(), least=1):
    """Layers of these classes have a ``factor``-th of their 64 or more channels from now on."""

    def width(number):
        if not isinstance(number, int) or number < 64 or number in keep:
            return number
        return max(least, number // factor)

    def thinner(init):
        def build(self, *numbers, **options):
            channels = {name: n for name, n in options.items() if name in CHANNELS}
            options |= {name: width(number) for name, number in channels.items()}
            init(self, *map(width, numbers), **options)

        return build

    for layer in layers:
        layer.__init__ = thinner(layer.__init__)


def train_other():
    """A GAN that has nothing to do with the upstream: ten optimizer steps."""
    critic, generator = nn.Linear(2, 1), nn.Linear(3, 2)
    of_critic, of_generator = (torch.optim.SGD(n.parameters(), 0.1) for n in (critic, generator))
    for _ in range(5):
        of_critic.zero_grad()
        (critic(generator(torch.randn(4, 3)).detach()) - critic(torch.ones(4, 2))).mean().backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(generator(torch.randn(4, 3)))).mean().backward()
        of_generator.step()


def keep(*networks):
    """Writes weights.pt."""
    torch.save([network.state_dict() for network in networks], "weights.pt")
