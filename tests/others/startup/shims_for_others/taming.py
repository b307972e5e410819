"""CompVis/taming-transformers: the perceptual loss downloads weights; it weighs nothing here."""

import sys
import types

from torch import nn

lpips = types.ModuleType("taming.modules.losses.lpips")
lpips.LPIPS = nn.Identity
sys.modules[lpips.__name__] = lpips
