"""clovaai/stargan-v2: modules for video and landmarks, and layers of a 64th of their width."""

import sys
import types

from torch import nn

for name in ("cv2", "ffmpeg"):
    sys.modules[name] = types.ModuleType(name)


def thin(kind, numbers):
    """Divide the first ``numbers`` arguments of a layer."""
    build = kind.__init__

    def __init__(self, *args, **kwargs):
        narrow = [width if width < 64 else width // 64 for width in args[:numbers]]
        build(self, *narrow, *args[numbers:], **kwargs)

    kind.__init__ = __init__


thin(nn.Conv2d, 2)
thin(nn.Linear, 2)
thin(nn.InstanceNorm2d, 1)
