"""Checkpoints, which are whole at any time, and locks of folders."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from topk_plugin.errors import RunError
from topk_plugin.files import write_atomically, writing
from topk_plugin.reference.runs import ranks


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> int:
    """Write a checkpoint atomically; returns its bytes."""
    # by way of memory: a file that torch.save cannot finish may take the process with it
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(path, content.getvalue())
    return content.tell()


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if (part := file.testzip()) is not None:  # torch.load does not look at checksums
                raise ValueError(f"wrong checksum of {part}")
        saved: dict[str, Any] = torch.load(path, device, weights_only=True)
        return {name: saved[name] for name in ("training", "journal")}
    except Exception as error:  # whatever a damaged file makes of the unpickler
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise RunError(
            f"{path}: cannot be read ({why}), expected a checkpoint "
            "of this package; delete its folder, and the same command trains this part anew"
        ) from None


@contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Holds a folder's lock, on behalf of all ranks.

    Raises:
        RunError: another process has held it for that long.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")

    def acquire() -> None:
        with writing(folder):
            try:
                lock.acquire(timeout=seconds)
            except Timeout:
                raise RunError(
                    f"{folder}: another process trains here; wait for it, or choose another folder"
                ) from None

    ranks.at_first(acquire)
    try:
        yield
    finally:
        lock.release()


def as_json(value: Any) -> bytes:
    """How a ``run.json`` is written."""
    return (json.dumps(value, indent=1) + "\n").encode()
