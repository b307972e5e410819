"""What is said of modules that were looked at: in the error, and in the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from topk_plugin.finding.candidate import Candidate
from topk_plugin.finding.identity import called
from topk_plugin.finding.owners import Owners
from topk_plugin.finding.rules import Verdict
from topk_plugin.streams import count


def of(candidate: Candidate, verdict: Verdict, owners: Owners, ask: bool = True) -> str:
    """One module that was not taken: what it returned, whose it is, and why it is none.

    Args:
        ask: whether it is a critic after all, which can be named.
    """
    outputs = [
        f"{name} {output.shape}{_pushed(output.raised, output.lowered)}"
        for name, output in candidate.outputs.items()
    ]
    shown = "; ".join([*outputs, *filter(None, [candidate.outputs.odd])])
    optimizer = owners.named(candidate.own.optimizers) or "none that is alive"
    name = candidate.flag() if ask else None
    if candidate.outputs.odd and not candidate.outputs:
        return (
            f"{candidate.name}: output {candidate.outputs.odd}; optimizer {optimizer}; it has no "
            "row for each sample, so it ranks none. If it is a critic, gate its scores in the "
            "script, where they are brought into rows of samples: topk(scores), of (B, ...)"
        )
    text = (
        f"{candidate.name}: output {shown}; optimizer {optimizer}; "
        f"{count(candidate.steps, 'generator step')} through it; {verdict.why}"
    )
    if candidate.outputs.are_logits and ask:
        return (
            f"{text}. If it is a critic, their mean ranks no samples: gate what the script makes "
            "of them, topk(score)"
        )
    if not name:
        return text
    if candidate.outputs.are_images:
        return (
            f"{text}. If it autoencodes, no output of it ranks samples and top-k does not apply; "
            f"if it scores each pixel, the mean does: {name}"
        )
    return f"{text}. If it is a critic: {name}"


def _pushed(raised: int, lowered: int) -> str:
    if not raised + lowered:
        return ""
    way, most = ("up", raised) if raised > lowered else ("down", lowered)
    return f", {most} of {raised + lowered} numbers pushed {way}"


def below(names: Iterable[str], flags: Iterable[str | None]) -> str:
    """The error where steps went ungated at k < B, though the critics could have been named."""
    return (
        f"{' and '.join(names)} was found after the first generator steps, which went ungated "
        "though k is below the batch from the first one on, and no checkpoint said which critic "
        f"it is. Start again and name it: {' '.join(map(str, flags))}"
    )


def too_late(found: str) -> str:
    """The error where an audit saw no step after the one in which critics were found."""
    return (
        f"{found}, and no generator step came after the first ones, in which critics are sought. "
        "Let the script take more steps, or name them: --critic"
    )


def lost(found: str, steps: int, flags: Sequence[str | None]) -> str:
    """The error where critics were found, and their calls in later steps were not those."""
    each = dict.fromkeys(flags)  # copies of one critic have one
    how = "attach them in the script" if None in each else " ".join(map(str, each))
    return (
        f"{found}, and none of the {steps} later steps of the generator's optimizer was gated: the "
        "loss does not read what they return as it did when they were found. Name the critics with "
        f"the heads that the loss reads: {how}"
    )


def unsure(names: Iterable[str], flags: Iterable[str | None]) -> str:
    """The warning of what may be a critic, beside those that were found.

    Args:
        flags: that name all of them, where they have names.
    """
    flags = list(dict.fromkeys(flags))
    how = f"name all: {' '.join(map(str, flags))}" if None not in flags else "attach all by hand"
    return (
        f"{' and '.join(names)} may be a critic too, and top-k leaves it alone: its own steps do "
        f"not show that they set generated samples against others. If it is one, {how}."
    )


def nothing_found(left: Iterable[str], optimizer_steps: int, optimizers: int) -> str:
    """The error: none of the modules that were looked at is a critic for certain."""
    steps, own = count(optimizer_steps, "optimizer step"), count(optimizers, "optimizer")
    table = "".join(f"\n  {line}" for line in left)
    name = "Name the critic: --critic module:Class (__main__:Class for one of the script itself)"
    if table:
        return (
            f"nothing was named, and no critic was found in {steps}. "
            f"Looked at, of what scored samples that another optimizer's parameters made:{table}\n"
            f"{name}, or attach it in the script."
        )
    other = (
        "Where a generator learns from rewards alone (REINFORCE, imitation), or from a gradient "
        "that is reversed on its way, top-k does not apply."
    )
    return (
        f"nothing was named, and no critic was found in {steps}: no "
        f"module that one of {own} owns was called with what parameters of "
        f"another one made, and sent a gradient back. {name}. {other}"
    )


def one_optimizer(scorers: Iterable[nn.Module]) -> str:
    """The error: its steps do not tell whose they are."""
    names = " and ".join(called(module) for module in scorers)
    return (
        f"nothing was named, and one optimizer owns both {names} and the network whose samples go "
        "there, so its steps do not tell generator steps from critic steps. Where the loop freezes "
        "the critic in the generator's steps, name it (--critic). Else, in the script, attach it "
        "and mark the generator's steps: `with attach(critic, topk):`, and "
        "`with topk.generator_step():` around their forward and backward."
    )
