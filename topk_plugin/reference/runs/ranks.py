"""Several processes that train one model, as torchrun starts them; alone, all of this is nothing.

``torchrun --nproc_per_node 8 -m -- topk_plugin reproduce table3 …`` gives each process its rank.
The first one alone reads and writes the run's folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from topk_plugin.errors import ConfigError, TopKError

PATIENCE = timedelta(hours=12)
"""The first rank may have to read a large data set while the others wait; torchrun ends them all
where one fails."""

T = TypeVar("T")


def launched() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Number of processes in the group; 1 outside of :func:`group`."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """The processes that torchrun started as one group: gloo on CPU, NCCL on GPUs, one for each.

    Raises:
        ConfigError: fewer GPUs than ranks, or an environment that is not torchrun's.
    """
    if launched() == 1 or distributed.is_initialized():
        yield
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"found WORLD_SIZE={launched()} in the environment without {', '.join(missing)}, "
            "expected what torchrun sets; start by torchrun, or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        own, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= found:
            raise ConfigError(
                f"torchrun: found {found} CUDA devices for local rank {own}, expected one for each "
                f"rank; give --nproc_per_node {found}, or --device cpu"
            )
        torch.cuda.set_device(own)
        # objects go by way of the CPU, gradients from GPU to GPU
        distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        # gloo's threads may still want Python's lock to free what they sent, and the group's end
        # waits for them with that lock in its hands (topk_plugin/core/scope.py)
        time.sleep(0.1)
        distributed.destroy_process_group()


def from_first(value: T) -> T:
    """The first rank's value, at every rank; anything that can be pickled."""
    if world() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def at_first(function: Callable[[], T]) -> T:
    """What a function gives at the first rank, at every rank; the others wait.

    Raises:
        TopKError: that of the first rank, at every rank.
    """
    found: Any = None
    if rank() == 0:
        try:
            found = function()
        except TopKError as error:
            if world() == 1:
                raise
            found = error
    found = from_first(found)
    if isinstance(found, TopKError):
        raise found
    return found


def gathered(value: T) -> list[T]:
    """Every rank's value, at every rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value)
    return found


@torch.no_grad()
def average_(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by their means over the ranks, in one message."""
    if world() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= world()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def copy_first_(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by the first rank's."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
