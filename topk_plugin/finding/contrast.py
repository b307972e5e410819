"""Whether a module's own steps set generated samples against others: rules on plain numbers.

The sign of the difference alone says little: that of a regression is a coin's, and lies one way
for long where its targets are higher for one of the two. A critic's loss has one target for all
samples of a kind, so that a score alone says how it is pushed; a regression's targets are the
samples' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from topk_plugin.finding.pushes import Pull, Push

AGREED, OPPOSITE = 0.9, 0.8
"""Shares: of the steps that agree, and of the numbers that are pushed one way, those of others
the other way. A loop may flip some labels."""

NUMBERS, STEPS, SORTED = 8, 5, 3
"""How many are no chance: numbers of either kind that are pushed by their score alone, or steps
without that; and of numbers in one step that are in the order of their scores."""

Numbers = tuple[int, int]
"""How many are raised, and how many are lowered."""


@dataclass(frozen=True)
class Contrast:
    """What a module's own steps do to generated samples and to others."""

    steps: int = 0  # that push both
    raised: int = 0  # of them, those that raise generated samples against the others
    lowered: int = 0
    ruled: int = 0  # numbers that are pushed by their score alone: of both, at least
    fakes: Numbers = (0, 0)
    others: Numbers = (0, 0)

    @property
    def way(self) -> int:
        """1: it raises generated samples against others, -1: it lowers them, 0: neither."""
        return (self.raised > self.lowered) - (self.raised < self.lowered)

    @property
    def agrees(self) -> bool:
        """Nearly all steps do the same."""
        return max(self.raised, self.lowered) >= AGREED * self.steps > 0

    @property
    def is_clear(self) -> bool:
        """It sets the two against each other for certain."""
        return self.agrees and (
            self.ruled >= NUMBERS or (self.steps >= STEPS and self._pushes_apart)
        )

    @property
    def is_likely(self) -> bool:
        """It may, where no other module is a critic."""
        return self.agrees and (self.ruled > 0 or self.steps >= STEPS or self._pushes_apart)

    @property
    def wavers(self) -> bool:
        """It does not: the steps go this way and that."""
        return self.steps >= STEPS and not self.agrees

    @property
    def _pushes_apart(self) -> bool:
        up, down = (self.fakes, self.others) if self.way > 0 else (self.others, self.fakes)
        return up[0] >= OPPOSITE * sum(up) > 0 and down[1] >= OPPOSITE * sum(down) > 0

    def __add__(self, other: Contrast) -> Contrast:
        return Contrast(
            self.steps + other.steps,
            self.raised + other.raised,
            self.lowered + other.lowered,
            self.ruled + other.ruled,
            _sum([self.fakes, other.fakes]),
            _sum([self.others, other.others]),
        )


NO_CONTRAST = Contrast()


def contrast(steps: Iterable[Sequence[Pull]], twins: Mapping[str, Set[str]]) -> Contrast:
    """Of a module's own ``steps``.

    Args:
        twins: for each score, the outputs for other samples that one call gives with it.
    """
    return sum((_of_step(pulls, twins) for pulls in steps), NO_CONTRAST)


def _of_step(pulls: Sequence[Pull], twins: Mapping[str, Set[str]]) -> Contrast:
    fakes, others = ([p.pushes for p in pulls if p.generated is of] for of in (True, False))
    difference, at_fakes, at_others = 0.0, list[Push](), list[Push]()
    for name, beside in twins.items():
        of_fakes = [one[name] for one in fakes if name in one]
        of_others = [one[name] for one in others if name in one] or [
            one[twin] for one in fakes for twin in beside & one.keys()
        ]
        if of_fakes and of_others:  # a score moves against its gradient
            difference += _mean(of_others) - _mean(of_fakes)
            at_fakes += of_fakes
            at_others += of_others
    both = _numbers(at_fakes), _numbers(at_others)
    least = min(map(sum, both))
    ruled = least >= SORTED and all(push.by_score for push in (*at_fakes, *at_others))
    if not sum(map(sum, both)):
        return NO_CONTRAST
    return Contrast(1, difference > 0, difference < 0, least if ruled else 0, *both)


def _mean(pushes: Sequence[Push]) -> float:
    return sum(push.mean for push in pushes) / len(pushes)


def _numbers(pushes: Iterable[Push]) -> Numbers:
    return _sum((push.raised, push.lowered) for push in pushes)


def _sum(pairs: Iterable[Numbers]) -> Numbers:
    raised, lowered = zip(*pairs, strict=True) if (pairs := [*pairs]) else ((), ())
    return sum(raised), sum(lowered)
