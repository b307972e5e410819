"""Tests that an older torch cannot pass, and why."""

import pytest

from topk_plugin.compat import SHAPES, TORCH


def needs_torch(version: str, why: str) -> pytest.MarkDecorator:
    """Skips on anything older than ``version``, as "2.5"."""
    older = tuple(map(int, version.split("."))) > TORCH
    return pytest.mark.skipif(older, reason=f"torch {version}: {why}")


compiles = needs_torch("2.4", "what is compiled is not supported before")
scalers = needs_torch("2.3", "has no GradScaler for the CPU before")
indexes = needs_torch("2.3", "TorchFunctionMode sees no index before")
inductor = needs_torch("2.6", "what inductor builds flushes the whole process's subnormals before")
twice = needs_torch("2.8", "compiles no critic twice")
reads_shapes = needs_torch("2.5", "the graph does not say what a loss does to the rows before")

UNREAD = "" if SHAPES else "; whether its loss couples rows is unread: that takes torch 2.5"
"""The end of each training's line in a verdict."""
