"""``os._exit``: a script that leaves by it has its verdict all the same."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable


def before_leaving(finish: Callable[[int], int]) -> Callable[[], None]:
    """Call ``finish`` before this process, or a fork of it, leaves by ``os._exit``.

    Args:
        finish: gets the exit status, and returns the one that the process ends in.

    Returns:
        a function that undoes it.
    """
    original = os._exit

    @functools.wraps(original)
    def leave(status: int) -> None:
        try:
            status = finish(status)
        finally:  # whatever it raises: the script wants to end here
            original(status)

    os._exit = leave  # type: ignore[assignment]

    def undo() -> None:
        if os._exit is leave:  # else somebody has put another one around it since
            os._exit = original

    return undo
