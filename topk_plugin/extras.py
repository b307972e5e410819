"""Modules that only the extra "reference" installs."""

from __future__ import annotations

import importlib
from typing import Any

from topk_plugin.errors import TopKError


def needed(module: str, by: str = "the reference experiments") -> Any:
    """A module of the extra "reference".

    Args:
        by: who needs it, in words, a plural.

    Raises:
        TopKError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise TopKError(
            f"{by} need {error.name}, which is not installed: pip install 'topk_plugin[reference]'"
        ) from error
