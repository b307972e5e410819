"""Operators that are compiled for CUDA as they are imported; the CPU has others."""

import sys
import types

import packaging.version
import torch.utils.cpp_extension

torch.utils.cpp_extension.load = lambda *args, **kwargs: None
resources = types.ModuleType("pkg_resources")  # that setuptools had
resources.parse_version = packaging.version.parse
sys.modules["pkg_resources"] = resources
