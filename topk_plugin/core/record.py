"""What a checkpoint keeps of a TopK, and whether something is such a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from topk_plugin.core.ranking import describe
from topk_plugin.errors import ResumeMismatch

VERSION = 1


def _count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _numbers(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Tensor) and value.dim() == 1 and len(value) >= least


def _lists(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, list) for one in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


NEEDED: dict[str, Callable[[Any], bool]] = {
    "version": lambda value: value == VERSION,
    "epoch": _count,
    "steps": _count,
    "votes": _numbers(2),
    "voting": _count,
    "settings": lambda value: isinstance(value, Mapping),
}
MAY_LACK: dict[str, Callable[[Any], bool]] = {
    "critic": lambda value: _numbers(2)(value) and len(value) == 2,
    "critic_steps": _count,
    "found": _lists,
    "distrusted": _texts,
}


def require_record(state: Any) -> None:
    """Raises ResumeMismatch where ``state`` is nothing that TopK.state_dict() gives."""
    found = state if isinstance(state, Mapping) else {}
    wrong = [name for name in NEEDED if name not in found]
    wrong += [name for name, fits in NEEDED.items() if name in found and not fits(found[name])]
    wrong += [name for name, fits in MAY_LACK.items() if name in found and not fits(found[name])]
    if wrong:
        value = found.get(wrong[0])
        shown = describe(value) if isinstance(value, (Tensor, Mapping, list)) else repr(value)
        what = f"{wrong[0]} {shown}" if wrong[0] in found else f"no {wrong[0]}"
        raise ResumeMismatch(
            f"found {what} in the record of top-k in a checkpoint, expected what "
            f"TopK.state_dict() gives, of version {VERSION}. It was damaged, or written by another "
            "release: take another checkpoint, or leave the record out and say how many epochs had "
            "ended, --start-epoch T (or TopK(start_epoch=T))."
        )


def require_same(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], start_epoch: int, epoch: int
) -> None:
    """Raises ResumeMismatch, with a diff, where a checkpoint's settings, or its epoch, are others.

    Args:
        mine, theirs: the settings that decide what is kept, now and in the checkpoint.
        start_epoch: where the run is to begin; 0: where the checkpoint says.
        epoch: of the checkpoint.
    """
    differ = [
        f"{name}: {value!r} in the checkpoint, {mine.get(name)!r} now"
        for name, value in theirs.items()
        if value != mine.get(name)
    ]
    if start_epoch and epoch != start_epoch:
        differ.append(f"epoch: {epoch} in the checkpoint, start_epoch {start_epoch} now")
    if differ:
        raise ResumeMismatch(
            "the checkpoint was written under other top-k settings:\n  "
            + "\n  ".join(differ)
            + "\nResume with the settings of the checkpoint, or start anew without it."
        )
