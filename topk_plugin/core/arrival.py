"""One gated call whose backward ran, and what it says of the generator step that it was in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from topk_plugin.core.shielded_gate import Box
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.core.training import Training
from topk_plugin.errors import GeneratorStepUnknown

NO_IDS: frozenset[int] = frozenset()


@dataclass(eq=False)
class Arrival:
    """A gated call whose backward ran."""

    choice: AnyChoice
    batch: int
    parameter: Tensor  # of the generator, upstream of the critic's input
    upstream: frozenset[int]  # ids of all parameters there
    critic: frozenset[int]  # ids of the critic's parameters
    known: bool  # declared a generator step by the user or the seam
    task: int  # which backward pass it was
    box: Box  # what became of a shielded call's audit
    unshielded: bool  # no gate could be exact, so it was left alone; see Attachment
    training: Training  # whose k it was gated by
    # no gradient of it lies in the critic (frozen, or zeroed since), so it is of no critic step
    spared: bool
    counted: Callable[[], None]  # told when a generator step counts it
    masks: bool = False  # its gate would mask a critic step's own gradient
    stopped: bool = False  # it ended at the samples, and nothing says that it will be sent on
    labels: Tensor | None = None  # (B,) of its samples, if the critic got them
    earlier: frozenset[int] = NO_IDS  # backward passes before it that went through the same call

    @property
    def tasks(self) -> frozenset[int]:
        """All backward passes through it."""
        return self.earlier | {self.task}

    @property
    def precedes(self) -> bool:
        """The training has not begun with it: the adversarial loss has the weight 0 so far (the
        device is waited for)."""
        nothing = self.box.weighs_nothing
        at = self.training.progress
        return not (self.known or nothing is None or at.begun or at.is_held) and bool(nothing)


def sent_on(stopped: deque[Arrival], owned: frozenset[int]) -> list[Arrival]:
    """Calls whose backward ended at the samples, where a generator steps that owns ``owned``.

    Args:
        stopped: all such calls; those of a critic that steps now were its own, and are taken out.

    Raises:
        GeneratorStepUnknown: rows were to be dropped, and it was not known before.
    """
    for call in [call for call in stopped if not call.critic.isdisjoint(owned)]:
        stopped.remove(call)
    sent = [call for call in stopped if not call.upstream.isdisjoint(owned)]
    for call in sent:
        call.training.by_samples = True
        if call.training.progress.fraction < 1 and getattr(call.choice, "k", 0) < call.batch:
            raise GeneratorStepUnknown(
                "the gradient of the generator's loss is formed by its samples and sent on by hand "
                "(autograd.grad, as loss balancers do), which shows only in a step that was gated: "
                "no row was dropped in this one. Expected it to be seen while k is B. "
                f"{HOW_TO_MARK}"
            )
    return sent


def require_shield(calls: Iterable[Arrival]) -> None:
    """Raises GeneratorStepUnknown where a call of a generator step was left alone."""
    if any(call.unshielded for call in calls):
        raise GeneratorStepUnknown(
            "the critic's parameters lie upstream of its own input (unrolled latent "
            "optimisation, a generator that reads the critic's features, or a critic of which "
            "only the last layers are attached), so no gate can spare the critic where nothing "
            "tells a generator step from a critic step; this generator step was left ungated. "
            "Attach the module that holds all layers of the critic, or mark the step: "
            "`with topk.generator_step():` around its forward and backward."
        )


HOW_TO_MARK = (
    "Put `with topk.generator_step():` around the generator step's forward and backward, or call "
    "`topk.step()` after its backward and before the optimizer's step; where the critic step "
    "sends fakes through the critic that are not detached, put `with topk.paused():` around it."
)
