"""What is kept of classifiers and of data sets' statistics, so that no run makes it again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topk_plugin.errors import RunError
from topk_plugin.files import write_atomically


def cache_folder() -> Path:
    """Where classifiers and statistics of data sets are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "topk_plugin")


def cached(
    cache: Path | None, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What the cache holds under a key, or else what is made and put there.

    Of several processes that ask for it, one makes it and the others wait.
    """
    from filelock import FileLock

    folder = cache_folder() if cache is None else cache
    asked = json.dumps(key, sort_keys=True)
    path = folder / f"{key['what']}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}), expected a folder to keep features "
            "in; correct its permissions, or set XDG_CACHE_HOME"
        ) from None
    try:
        if path.exists():
            try:
                return _read(path, asked)
            except Exception as error:  # whatever a damaged file makes of the unpickler
                why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                warnings.warn(f"{path}: damaged ({why}); made anew", stacklevel=3)
        content = make()
        file = io.BytesIO()
        torch.save({"key": asked, "digest": digest_of(content), "content": content}, file)
        write_atomically(path, file.getvalue())
        return content
    finally:
        lock.release()


def _read(path: Path, asked: str) -> dict[str, Any]:
    kept = torch.load(path, "cpu", weights_only=True)
    if kept["key"] != asked or kept["digest"] != digest_of(kept["content"]):
        raise ValueError("it is not what was written")
    content: dict[str, Any] = kept["content"]
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 of names, shapes, types and values."""
    found = hashlib.sha256()
    for name, value in sorted(content.items()):
        if isinstance(value, Mapping):
            value = digest_of(value)
        elif isinstance(value, Tensor):
            found.update(f"{tuple(value.shape)} {value.dtype} ".encode())
            value = hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).hexdigest()
        found.update(f"{name} {value!r}\n".encode())
    return found.hexdigest()
