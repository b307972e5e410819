"""Which modules are critics, by what was seen of them: rules on plain numbers.

A critic is owned by an optimizer that does not own the generator, and

1. scores: generator steps push (nearly) all numbers of an output one way. Class logits, codes and
   features are pushed both ways;
2. is trained on more than the generator's own gradient, which decoders and networks that estimate
   mutual information in the generator's step are not;
3. opposes: its own steps set generated samples against the others. Those of a classifier of labels
   never see the two apart, and those of a regression do so by chance alone.

What shows all of it is taken at once. Where the third cannot be read (samples that were augmented
or concatenated after they were detached), a module is taken after some steps if all that are left
are of one kind.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from topk_plugin.finding.pushes import Push

ALIKE = 0.9
"""Share of a score's numbers that generator steps push the same way."""

UNANIMOUS = 0.99
"""The same of outputs with several numbers a sample: no row of class logits is pushed one way."""

LONE, LONE_STEPS = 0.6, 3
"""The same of scores where nothing else is left after some steps: losses that seek a target push
some of them the other way."""

UNLIKE = "the loss reads its numbers otherwise than as scores, as it does class logits"
ALONG = "its own steps push generated samples the way the generator's steps do"

Kind = Literal["score", "numbers", "image"]


@dataclass
class Output:
    """One output of a module that depends on the generator's samples."""

    shape: tuple[int, ...]
    kind: Kind  # one number a sample (or a map of it), several, or as many as the sample has
    raised: int = 0  # numbers of it that generator steps push up
    lowered: int = 0
    alike: bool = True  # see Push
    read: Tensor | None = None

    def take(self, push: Push) -> None:
        """A step of the generator pushed it."""
        self.raised, self.lowered = self.raised + push.raised, self.lowered + push.lowered
        self.alike &= push.alike
        if push.read is not None:
            self.read = push.read if self.read is None else self.read | push.read

    @property
    def is_flat(self) -> bool:
        """(B, N), as a map of scores may be: other outputs beside scores are features."""
        return len(self.shape) == 2

    @property
    def by_mean(self) -> bool:
        """Of several numbers of a sample, whether their mean ranks it, for all that was seen."""
        return self.alike and (self.read is None or bool(self.read.all()))


@dataclass
class Seen:
    """What was seen of one module."""

    like: str  # what is of one kind has the same
    outputs: dict[str, Output] = field(default_factory=dict)  # by dotted name
    listed: bool = False  # the outputs are a list: scores together, or none of them
    steps: int = 0  # of the generator, whose gradient came through it
    apart: bool = False  # its optimizer stepped on other gradients than those
    helps: bool = False  # ... or on those alone
    contrast: int = 0  # its own steps raised generated samples against others: how often more
    trouble: str = ""  # why it cannot be told what its steps are


class Verdict(NamedTuple):
    """Of one module."""

    heads: tuple[str, ...]  # the outputs that are scores, if it is a critic
    why: str = ""  # it is none
    maybe: bool = False  # it scores, and nothing but its own steps tells whether it opposes


def judge(
    modules: Sequence[Seen], known: Collection[str] = (), last: bool = False
) -> list[Verdict]:
    """Which of ``modules`` are critics, by what was seen so far.

    Args:
        known: kinds of critics that were found before.
        last: there is no later: whoever is clear by now is taken.
    """
    verdicts = [_alone(seen) for seen in modules]
    sure = [bool(v.heads) and _opposes(s, v) for s, v in zip(modules, verdicts, strict=True)]
    kinds = {s.like for s, v, yes in zip(modules, verdicts, sure, strict=True) if yes or not v.why}
    for place, (seen, verdict) in enumerate(zip(modules, verdicts, strict=True)):
        if sure[place] or verdict.why:
            continue
        if (kinds | {*known}) - {seen.like}:
            why = "its own steps do not show that they set generated samples against others"
            verdicts[place] = Verdict((), f"{why}, and it is not the only one", maybe=True)
        elif seen.steps < (1 if last else LONE_STEPS):
            verdicts[place] = Verdict((), "too few generator steps came through it to tell")
        elif not verdict.heads:
            verdicts[place] = _late(seen)
    return verdicts


def _late(seen: Seen) -> Verdict:
    """Of one module when nothing else is left."""
    verdict = Verdict(*heads_of(seen, LONE))
    heads = verdict.heads or unanimous(seen)
    if heads and seen.contrast * _way(seen, heads) > 0:
        return Verdict((), ALONG)
    return Verdict(heads) if heads else verdict


def _alone(seen: Seen) -> Verdict:
    """Of one module by itself; with neither heads nor a reason it may be one."""
    if seen.trouble:
        return Verdict((), seen.trouble)
    if not seen.steps:
        return Verdict((), "no gradient of it reached the generator")
    if seen.helps:
        return Verdict((), "its optimizer learns from the generator step's own gradient")
    if not seen.apart:
        return Verdict((), "nothing trained it but the generator step's own gradient")
    verdict = Verdict(*heads_of(seen, ALIKE))
    if verdict.heads and seen.contrast * _way(seen, verdict.heads) > 0:
        return Verdict((), ALONG)
    if verdict.why and (heads_of(seen, LONE)[0] or unanimous(seen)):
        return Verdict(())
    return verdict


def _opposes(seen: Seen, verdict: Verdict) -> bool:
    return seen.contrast * _way(seen, verdict.heads) < 0


def _way(seen: Seen, heads: Sequence[str]) -> int:
    """1: generator steps raise these outputs, -1: they lower them."""
    first = seen.outputs[heads[0]]
    return 1 if first.raised > first.lowered else -1


def heads_of(seen: Seen, alike: float) -> tuple[tuple[str, ...], str]:
    """The outputs that are scores, or why there are none.

    Args:
        alike: the share of a score's numbers that is pushed one way.
    """
    pooled: dict[str, list[int]] = {}
    for name, output in seen.outputs.items():
        total = pooled.setdefault(_group(name, seen.listed), [0, 0])
        total[0] += output.raised
        total[1] += output.lowered
    share = {
        name: max(total) / sum(total)
        for name, output in seen.outputs.items()
        if output.raised + output.lowered and (total := pooled[_group(name, seen.listed)])
    }
    scores = [name for name in share if seen.outputs[name].kind == "score"]
    if not scores and any(output.kind == "image" for output in seen.outputs.values()):
        return (), "it returns an image"  # and perhaps the code that it was made of
    if not share:
        return (), "the loss sent no gradient to it"
    heads = [name for name in scores if share[name] >= alike]
    beside = {_group(name, seen.listed) for name in heads}
    ways = {_way(seen, [name]) for name in heads}
    # a flattened map beside others; or nothing else is a score
    heads += [
        name
        for name in share
        if seen.outputs[name].kind == "numbers"
        and seen.outputs[name].by_mean
        and (share[name] >= UNANIMOUS or _group(name, seen.listed) in beside)
        and (not heads or (seen.outputs[name].is_flat and _way(seen, [name]) in ways))
    ]
    # a score of each pixel is as large as the image; what an autoencoder makes goes both ways
    heads += [
        name
        for name in share
        if heads
        and seen.outputs[name].kind == "image"
        and seen.outputs[name].by_mean
        and share[name] >= UNANIMOUS
        and _way(seen, [name]) in ways
    ]
    if not heads:
        if not scores and not any(seen.outputs[name].by_mean for name in share):
            return (), UNLIKE
        most = max(share[name] for name in scores or share)
        return (), f"generator steps push its numbers both ways ({most:.0%} of them one way)"
    if len({_way(seen, [name]) for name in heads}) == 2:
        return (), f"generator steps push {', '.join(heads)} in opposite directions"
    return tuple(name for name in share if name in heads), ""


def unanimous(seen: Seen) -> tuple[str, ...]:
    """Outputs that are pushed one way while others of their list are not: features whose
    distance from those of reals is in the loss too, say."""
    pushed = {n: o for n, o in seen.outputs.items() if o.raised + o.lowered and o.kind != "image"}
    heads = tuple(
        name
        for name, output in pushed.items()
        if max(output.raised, output.lowered) >= UNANIMOUS * (output.raised + output.lowered)
        and (output.kind == "score" or (output.is_flat and output.by_mean))
    )
    one_way = len({_way(seen, [name]) for name in heads}) == 1
    return heads if one_way and any(seen.outputs[n].kind == "score" for n in heads) else ()


def _group(name: str, listed: bool) -> str:
    """The list that holds an output: all that it holds are scores, or none is."""
    container = name.rpartition(".")[0]
    return container if container or listed else name
