"""What wraps a critic: for several devices, by torch.compile, by Lightning's Fabric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn


def unwrapped(critic: nn.Module | None) -> Iterator[nn.Module]:
    """A critic and what DataParallel, its distributed form, torch.compile or Fabric wrap in it."""
    module: Any = critic
    while isinstance(module, nn.Module):
        yield module
        inner = module.__dict__.get("_modules", {})
        wrapper = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
        names = ("module",) if wrapper else ("_orig_mod", "_forward_module")
        module = next((inner[name] for name in names if name in inner), None)


def entrances(critic: nn.Module) -> Iterator[nn.Module]:
    """The modules whose call is a call of the critic; the outermost one that is called gates.

    DistributedDataParallel and Lightning's Fabric are passed through to their module, so that what
    they hook stays outside the gate. DataParallel's replicas see a shard each, so its own output is
    gated as well.
    """
    while (inner := _hooked(critic)) is not None:
        critic = inner
    yield critic
    if isinstance(critic, nn.DataParallel):
        yield from entrances(critic.module)


def _hooked(module: nn.Module) -> nn.Module | None:
    """What ``module`` only wraps, hooking what that returns."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return cast(nn.Module, module.module)
    return module.__dict__["_modules"].get("_forward_module")
