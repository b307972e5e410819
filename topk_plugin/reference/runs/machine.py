"""What a run is trained on: the device, its cores, and the versions that a result depends on."""

from __future__ import annotations

import os
import platform

import torch

import topk_plugin
from topk_plugin.errors import ConfigError


def chosen_device(name: str | None) -> torch.device:
    """The device of that name; without one, a GPU if there is any.

    Raises:
        ConfigError: it is not there.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device: found {name!r}, expected cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device: found no CUDA device that torch {torch.__version__} can use, expected one; "
            "leave the flag out to train on the CPU"
        )
    return torch.device(name)


def name_of(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.machine()}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """What a result depends on."""
    return {
        "topk_plugin": topk_plugin.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
