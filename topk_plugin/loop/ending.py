"""What is said when an attachment ends in which top-k did nothing, or not what was asked for."""

from __future__ import annotations

from topk_plugin.streams import count, warn
from topk_plugin.topk import TopK


def warn_of_nothing(topk: TopK, steps: int, optimizer_steps: int) -> None:
    """Warns where nothing was gated or nothing could be dropped, or a critic was lost.

    Args:
        steps, optimizer_steps: of the generator, and of all optimizers, when it began.

    Raises:
        GeneratorStepUnknown: the loss reads the critic past its outputs.
    """
    ran = topk.ledger.optimizer_steps - optimizer_steps
    for training in topk.trainings.all:
        training.audit.check()
    if ran and topk.trainings.steps == steps:
        _say(
            f"{count(ran, 'optimizer step')} ran and no generator step was gated. "
            "Expected loss = f(critic(generator(z))), its backward, and a step of an "
            "optimizer that owns the generator's parameters."
        )
    begun = [training for training in topk.trainings.all if training.progress.begun]
    for said in filter(None, (training.left for training in begun)):
        _say(f"{said}. Was it replaced? Attach its successor, too.")
    if begun and topk.config.gamma < 1 and not any(training.can_drop for training in begun):
        _say(
            f"k could never fall below the batch of {count(begun[0].counts.largest, 'row')} with "
            f"nu = {topk.config.nu:g}, so top-k did nothing."
        )


def _say(text: str) -> None:
    warn(f"attach: {text}", stacklevel=4)
