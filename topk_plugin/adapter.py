"""What an adapter states about a third-party repository; :mod:`topk_plugin.seams` acts on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from topk_plugin.errors import ConfigError
from topk_plugin.source.rules import Patch, Rule

Seam = Literal["call", "source"]
Direction = Literal["high", "low"]
Companions = Literal["follow", "keep"]
SEAMS, DIRECTIONS, COMPANIONS = map(get_args, (Seam, Direction, Companions))

Wrapper = Callable[[Any, Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
"""``(seam, wrapped, instance, args, kwargs)``: what stands around an upstream function; it calls
``wrapped(*args, **kwargs)``, which is bound already, and returns what the caller gets."""


@dataclass(frozen=True)
class Wrap:
    """One upstream function that an adapter relies on, and what stands around it."""

    module: str  # where the call site looks it up, such as "torch_mimicry.training.trainer"
    name: str  # there, such as "Trainer._fetch_data"
    signature: str  # without annotations, such as "(self, iter_dataloader)"
    wrapper: Wrapper | None = None  # None: relied on, and left as it is

    def __post_init__(self) -> None:
        """Raises ConfigError for a scores_argument() that is none of the signature's."""
        argument = getattr(self.wrapper, "argument", None)
        stated = re.findall(r"\w+", self.signature)
        if argument is not None and stated and argument not in stated:
            raise ConfigError(
                f"{self.module}: found scores_argument({argument!r}) for {self.name}"
                f"{self.signature}, expected one of its arguments; correct the name"
            )


def missing(module: str) -> Callable[..., Any]:
    """What stands in for a function of a module that is gone, where training does without it.

    Returns:
        a function that raises ModuleNotFoundError when it is called.
    """

    def use(*args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}: it is needed here", name=module)

    return use


@dataclass(frozen=True)
class Adapter:
    """One upstream repository: where top-k goes in it, and what was verified.

    The wraps' modules, names and signatures and the places of the patch are its fingerprint: an
    upstream where they differ is :class:`~topk_plugin.errors.UnsupportedUpstream`.
    """

    name: str  # for `topk run --adapter`
    upstream: str  # the repository, "owner/name"
    versions: tuple[str, ...]  # releases or commits it was run on
    seam: Seam  # functions are wrapped, or the patch's topk rules applied
    wraps: tuple[Wrap, ...]  # of the functions that are wrapped
    epoch: str  # where an epoch ends, in words
    counter: str  # where upstream keeps its counter, in words
    tested: str  # how, in words
    distribution: str | None = None  # on the package index; None: a checkout only
    install: str | None = None  # the command that installs a verified version
    direction: Direction | None = None  # of its own losses, if known
    # modules that upstream imports and that need not exist: {"torch._six": {"PY3": True}}
    stubs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    patch: Patch | None = None  # source rules, for `topk patch` too
    # of a package: the least that it needs to run on today's torch, and on CPU; applied in memory
    # alone, to files relative to the folder that holds the package. A checkout's are its patch's
    modern: tuple[Rule, ...] = ()
    # what becomes of the critic's other outputs in dropped rows, unless the settings say
    companions: Companions = "keep"
    # upstream's flags for a configuration file that may have the settings
    config_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for a word that is none of those that its field takes."""
        words = {"seam": SEAMS, "direction": (*DIRECTIONS, None), "companions": COMPANIONS}
        for name, known in words.items():
            found = getattr(self, name)
            if found not in known:
                raise ConfigError(
                    f"adapter {self.name!r}: found {name}={found!r}, expected one of "
                    f"{', '.join(map(repr, known))}; correct it"
                )
