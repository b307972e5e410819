"""Adam took whole numbers for betas."""

import torch

build = torch.optim.Adam.__init__


def build_with_floats(self, params, *args, betas=(0.9, 0.999), **kwargs):
    build(self, params, *args, betas=tuple(map(float, betas)), **kwargs)


torch.optim.Adam.__init__ = build_with_floats
