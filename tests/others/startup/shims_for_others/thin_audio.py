"""Critics of audio with a sixteenth of their channels."""

from torch import nn


def thinner(channels):
    return channels if channels < 32 or channels == 80 else max(channels // 16, 16)


def thin(kind):
    build = kind.__init__

    def __init__(self, into, out, *args, **kwargs):
        build(self, thinner(into), thinner(out), *args, **kwargs)

    kind.__init__ = __init__


thin(nn.Conv1d)
thin(nn.Conv2d)
