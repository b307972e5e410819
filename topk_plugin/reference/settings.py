"""What the settings of a reference experiment are held against, value by value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from topk_plugin.errors import ConfigError

Rule = tuple[list[str], Callable[[Any], bool], str]
"""Names of settings, whether a value fits them, and what is expected in words."""


def check(settings: object, rules: Iterable[Rule]) -> None:
    """Raises ConfigError at the first setting that does not fit its rule."""
    for names, fits, expected in rules:
        for name in names:
            require(fits(value := getattr(settings, name)), name, value, expected)


def require(fits: bool, name: str, found: Any, expected: Any) -> None:
    """Raises ConfigError unless the setting ``name`` fits."""
    if not fits:
        raise ConfigError(f"{name}: found {found!r}, expected {expected}")


def is_number(value: object) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def is_whole(value: object, least: int, multiple: int = 1) -> bool:
    """Whether it is a whole number, at least ``least``, and a multiple of another one."""
    return type(value) is int and value >= least and value % multiple == 0
