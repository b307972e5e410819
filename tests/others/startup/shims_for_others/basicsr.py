"""BasicSR and Real-ESRGAN: modules that setup.py writes, and one that torchvision had."""

import sys
import types

import torchvision.transforms.functional as functional

for package in ("basicsr", "realesrgan"):
    version = sys.modules[f"{package}.version"] = types.ModuleType(f"{package}.version")
    version.__version__ = version.__gitsha__ = "unknown"
gone = types.ModuleType("torchvision.transforms.functional_tensor")
gone.rgb_to_grayscale = functional.rgb_to_grayscale
sys.modules[gone.__name__] = gone
