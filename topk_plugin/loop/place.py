"""One place of a loop, a call stack, and what became of the gradients that its calls left.

What is learned of places, and what for, says :mod:`topk_plugin.loop.places`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePath
from types import CodeType, FrameType

import torch

from topk_plugin.core.parameters import Owned
from topk_plugin.errors import GeneratorStepUnknown

LEARNED = 20
"""Generator steps after which a place is trusted."""

FRAMES = 100
"""Of a stack, at most: what differs below is one place, which is then learned less readily."""
Stack = tuple[int, ...]

_MODULES = vars(torch.nn.modules.module)


def stack_of(frame: FrameType | None) -> Stack:
    """The code that runs and its line, in ``frame`` and those that called it."""
    found: list[int] = []
    while frame is not None and len(found) < 2 * FRAMES:
        if frame.f_globals is not _MODULES:  # its lines depend on hooks that come and go
            found += (id(frame.f_code), frame.f_lineno)
        frame = frame.f_back
    return tuple(found)


def loops_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost one, of ``frame`` and those that called it, that runs code of the loop."""
    while frame is not None and _package(frame) in _NOT_THE_LOOPS:
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".")[0]


_NOT_THE_LOOPS = ("topk_plugin", "torch")


class Place:
    """One call stack, and what became of the gradients that its calls left in the critic.

    Args:
        frame: the innermost one that runs code of the loop.
        distrusted: names of places that are never trusted; may grow.
    """

    def __init__(self, frame: FrameType, distrusted: list[str]) -> None:
        lines, launched = list[str](), False
        self.codes: list[CodeType] = []  # kept alive: another code may get the id of one
        inner: FrameType | None = frame
        while inner is not None and len(self.codes) < FRAMES:
            self.codes.append(inner.f_code)
            module = str(inner.f_globals.get("__name__", ""))
            launched |= module.startswith("topk_plugin.run.")  # what stands below runs the loop
            if not launched and _package(inner) not in _NOT_THE_LOOPS:
                name = PurePath(inner.f_code.co_filename).name
                lines.append(f"{name}:{inner.f_lineno} {inner.f_code.co_name}")
            inner = inner.f_back
        # the same in another process, and on another machine
        self.name = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        self.title = lines[0].split(" ")[0]
        self._distrusted = distrusted
        self.coupled = False  # rows acted on each other in the latest call that could show it
        self.learned = 0  # generator steps
        self._waiting = 0  # ... of which the gradient still lies in the critic
        self._latest: object = None  # the step that was counted last
        # since the critic's gradients were zeroed: whether a backward came, and was spared
        self.reached = self.spared = False
        self._left: frozenset[int] = frozenset()  # parameters, by id, not yet zeroed
        self._owned: Owned | None = None

    @property
    def is_distrusted(self) -> bool:
        """It failed once, perhaps in an earlier run."""
        return self.name in self._distrusted

    @property
    def is_learned(self) -> bool:
        """Its calls may be spared."""
        return self.learned >= LEARNED and not self.is_distrusted

    def called(self, owned: Owned, ids: frozenset[int], spared: bool) -> None:
        """A call from here; ``ids`` are parameters, of those ``owned``, that get its gradient."""
        self._left, self._owned = ids, owned
        self.spared |= spared
        unsettled[self] = None

    def arrived(self, owned: Owned, ids: frozenset[int], spared: bool) -> None:
        """The backward of such a call."""
        self.called(owned, ids, spared)
        self.reached = True

    def counted(self, step: object) -> None:
        """It was a generator ``step``."""
        if step == self._latest:
            return  # another call of it
        self._latest = step
        if self.reached:
            self._waiting += 1
        else:
            self.learned += 1

    @property
    def left(self) -> frozenset[int]:
        """Parameters, by id, of which its gradient is not yet thrown away."""
        if self._owned is None or self._owned.alive:
            return self._left
        # of layers that were replaced since: other parameters may have their ids
        return self._left.intersection(map(id, self._owned))

    def thrown_away(self, gone: Iterable[int]) -> None:
        """The gradients of parameters, by id, are gone."""
        self._left = self.left - frozenset(gone)
        if not self._left:
            self.learned += self._waiting
            self.close()

    def close(self) -> None:
        """Nothing of its calls lies in the critic any more."""
        self._waiting, self.reached, self.spared, self._left = 0, False, False, frozenset()
        unsettled.pop(self, None)

    def distrust(self) -> None:
        """Its calls are never spared, from now on."""
        if not self.is_distrusted:
            self._distrusted.append(self.name)
        self.close()

    def used(self, how: str) -> None:
        """Somebody uses what its calls left in the critic, or should have.

        Raises:
            GeneratorStepUnknown: they were spared.
        """
        if self.spared:
            self.missing(how)
        self.distrust()

    def missing(self, how: str) -> None:
        """Somebody uses what a spared call should have left in the critic.

        Raises:
            GeneratorStepUnknown: always.
        """
        self.distrust()
        raise GeneratorStepUnknown(
            f"the critic's gradient of a generator step is used: {how}, and the critic formed none "
            f"in a call from {self.title}, since {self.learned} generator steps from there had "
            "thrown it away unread. Nothing was changed yet. Let the critic form it in each step: "
            "--no-spare, TopK(spare=False); or go on from a checkpoint that is written after this, "
            "in which the place is no longer trusted."
        )


unsettled: dict[Place, None] = {}
"""Those of which a gradient lies in a critic, or would without sparing, in the order of calls."""
