"""NVIDIA/pix2pixHD: names that Python, torchvision and SciPy had."""

import fractions
import math
import sys
import types

from torchvision import transforms

fractions.gcd = math.gcd
transforms.Scale = transforms.Resize
sys.modules["scipy.misc"] = types.ModuleType("scipy.misc")
