"""What a critic is called, and how another process finds it again."""

from __future__ import annotations

import sys
import weakref
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from topk_plugin.loop.wrappers import unwrapped
from topk_plugin.seams.names import title


class Identity(NamedTuple):
    """Which of the modules of a run is a critic; in a checkpoint a list."""

    kind: str  # its class, and a number that stands for its parameters' shapes
    order: int  # of its first call, among modules of its kind
    part: str = ""  # the module in it that scores, where it averages
    heads: tuple[str, ...] = ()  # that have to be named

    @classmethod
    def of(cls, saved: Sequence[str | int | list[str]]) -> Identity:
        """From a checkpoint."""
        kind, order, part, heads = saved
        return cls(str(kind), int(order), str(part), tuple(heads))  # type: ignore[arg-type]

    @property
    def saved(self) -> list[str | int | list[str]]:
        """For a checkpoint."""
        return [self.kind, self.order, self.part, [*self.heads]]


class Places:
    """Numbers modules in the order of their first calls."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, Identity] = weakref.WeakKeyDictionary()
        self._called: Counter[str] = Counter()

    def of(self, owner: nn.Module, scorer: nn.Module | None = None) -> Identity:
        """Of a module that is called, and perhaps one in it that scores."""
        inner = plain(owner)
        if inner not in self._known:
            kind = _exact(inner)
            self._known[inner] = Identity(kind, self._called[kind])
            self._called[kind] += 1
        if scorer is None or scorer is inner:
            return self._known[inner]
        part = next(name for name, module in inner.named_modules() if module is scorer)
        return self._known[inner]._replace(part=part)


def plain(module: nn.Module) -> nn.Module:
    """What DataParallel, DistributedDataParallel or torch.compile wrap."""
    *_, inner = unwrapped(module)
    return inner


def like(module: nn.Module) -> str:
    """The same for modules of one class; torch's own are networks of any kind, so of those also
    the parameters' shapes have to agree."""
    return title(type(plain(module))) if _has_class(module) else _exact(plain(module))


def called(owner: nn.Module, part: str = "") -> str:
    """What the script calls it: its class, or else the name that it has in the script."""
    inner, dotted = plain(owner), f".{part}" if part else ""
    if _has_class(owner):
        return f"{title(type(inner))}{dotted}"
    script = vars(sys.modules["__main__"]).items()
    modules = [(name, value) for name, value in script if issubclass(type(value), nn.Module)]
    kind, names = type(inner).__name__, [n for n, module in modules if plain(module) is inner]
    return f"{f'{names[0]} ({kind})' if names else f'a {kind}'}{dotted}"


def flag(owner: nn.Module, part: str, heads: Sequence[str] = ()) -> str | None:
    """How it is named on the command line; None: its class has no name that could be."""
    if not _has_class(owner) or "." in part:
        return None
    return with_heads(f"--critic {called(owner, part)}", heads)


def with_heads(critic: str, heads: Sequence[str]) -> str:
    """A flag, with the outputs that are scores."""
    return f"{critic}={','.join(heads)}" if heads else critic


def _has_class(module: nn.Module) -> bool:
    """Whether its class is none of torch's."""
    return not type(plain(module)).__module__.startswith("torch.")


def _exact(inner: nn.Module) -> str:
    shapes = [(name, *parameter.shape) for name, parameter in inner.named_parameters()]
    return f"{title(type(inner))} {zlib.crc32(repr(shapes).encode())}"
