"""Modules that only the extra "reference" installs."""

from __future__ import annotations

import importlib
from typing import Any

from topk_plugin.errors import TopKError


def needed(module: str) -> Any:
    """A module of the extra "reference".

    Raises:
        TopKError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise TopKError(
            f"the reference experiments need {error.name}, which is not installed: "
            "pip install 'topk_plugin[reference]'"
        ) from error
