"""Random streams that a key alone decides, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def stream(*key: str | int, device: torch.device) -> torch.Generator:
    """A random stream of its own for each key, the same whatever was drawn before."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest) >> 1)
