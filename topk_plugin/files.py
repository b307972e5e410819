"""Files that are whole at any time, whatever kills the process that writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from topk_plugin.errors import RunError

PARTIAL = ".partial"
"""Ends the name of a file that is being written; a killed process leaves one behind."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, or a folder that cannot be written, as a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: not written ({error.strerror}). Free space or correct the permissions, then "
            "give the same command again: it goes on from what is whole"
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any time it is either the old one or the new one, both whole.

    Args:
        path: of the file; its folder exists.
        content: all of it.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the rename itself has to reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
