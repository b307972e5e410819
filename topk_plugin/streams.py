"""What is said goes where it can: a script may close its streams, replace them, or set None."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Literal, TextIO


def say(text: str, stream: Literal["stderr", "stdout"] = "stderr") -> None:
    """A line to ``sys.stderr``, else to the one that Python began with, else to nobody.

    Raises nothing: how a script left its streams is no reason to end it, or to end it otherwise.
    """
    original: TextIO | None = getattr(sys, f"__{stream}__")
    for file in (getattr(sys, stream, None), original):
        try:
            if file is not None:
                write = _write_through if file is original else _write
                write(file, f"{text}\n")
                return
        except Exception:  # of a stream of the script's, whatever that is
            continue


def count(number: int | str, one: str) -> str:
    """A number of things in words: ``1 epoch``, ``2 epochs``, ``3 backward passes``."""
    several = f"{one}es" if one.endswith("s") else f"{one}s"
    return f"{number} {one if str(number) == '1' else several}"


def warn(message: str, stacklevel: int = 1) -> None:
    """``warnings.warn()``, which raises ValueError where ``sys.stderr`` is closed."""
    try:
        warnings.warn(message, stacklevel=stacklevel + 1)
    except Warning:  # the user wants errors
        raise
    except Exception:
        say(f"UserWarning: {message}")


def _write(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()


def _write_through(file: TextIO, text: str) -> None:
    """Write with nothing left in a buffer, which Python would fail to flush in the end (120)."""
    file.flush()
    rest = text.encode(file.encoding or "utf-8", "backslashreplace")
    while rest:
        rest = rest[os.write(file.fileno(), rest) :]
