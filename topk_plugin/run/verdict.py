"""What the verdict says of one training."""

from __future__ import annotations

from collections.abc import Iterator

from topk_plugin.compat import SHAPES
from topk_plugin.core.training import Training
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.streams import count

Before = tuple[int, int, int]
"""Rows, dropped and non-finite ones that another process counted."""


def lines_of(
    training: Training, tracker: EpochTracker, before: Before = (0, 0, 0), coupled: str = ""
) -> Iterator[str]:
    """What was counted in one training, and what is odd about it.

    Args:
        tracker: what ends its epochs, unless an upstream counter does.
        before: of the process that this one was forked from.
        coupled: the operation by which its loss couples rows.
    """
    progress, report = training.progress, training.report()
    ended = progress.ended - progress.first_epoch
    rows, dropped, nonfinite = before
    last = tracker.topk.scope.kept_of(report.last_k, report.last_batch, progress.fraction)
    counted = f"; epochs counted {progress.told_by}" if ended else ""
    direction = ""
    if report.direction != "undecided":
        confirmed = ", confirmed by the critic's own steps" if training.vote.confirmed else ""
        direction = f"; direction {report.direction}, {training.vote.how()}{confirmed}"
    spared = f" ({report.spared} of them spared the critic's gradient)" if report.spared else ""
    gated = progress.steps - progress.first_step - training.counts.ungated
    yield (
        f"{count(gated, 'generator step')} gated{spared}, "
        f"{report.dropped - dropped} of {count(report.rows - rows, 'row')} dropped, "
        f"{count(ended, 'epoch')} ended, last {last}, "
        f"{count(report.nonfinite - nonfinite, 'non-finite score')}{counted}{direction}"
        + (f"; its loss couples the rows of a batch ({coupled})" if coupled else "")
        + ("" if SHAPES else "; whether its loss couples rows is unread: that takes torch 2.5")
    )
    yield from _of_epochs(training, tracker)
    if training.parts.found:
        yield "the loss reads the scores of a part of each batch, and that part alone competes"
    whole = report.last_k == report.last_batch and not report.dropped - dropped
    if gated and whole and ended and progress.fraction < 1 and training.can_drop:
        yield (
            "no row was dropped: k is B until an epoch ends, and none ended before the last "
            f"generator step. Train for more epochs, or pass {_sooner(tracker)}"
        )
    if report.direction == "undecided":
        yield "the loss never told the direction: no gradient, or as many rows asked for either end"
    for other in tracker.topk.trainings.all[: training.number - 1]:
        if training.opposes(other):
            yield (
                f"training {other.number} ranks the scores of the same critic from the other end, "
                f"direction {other.direction}: losses that pull scores to a target ask for either. "
                "Set it: --direction high if the critic gives real samples high scores, else low"
            )
    if training.left:
        yield training.left
    own = training.vote.of_critic
    if not training.vote.is_auto and own not in ("unread", report.direction):
        yield (
            f"direction {report.direction} was set, but the critic's own steps say {own}: "
            f"they {'lower' if own == 'high' else 'raise'} the scores of generated samples"
        )


def _of_epochs(training: Training, tracker: EpochTracker) -> Iterator[str]:
    """What was not counted as an epoch of one training."""
    config, progress = tracker.topk.config, training.progress
    ended = progress.ended - progress.first_epoch
    early = tracker.early_passes(training)
    if early:
        yield (
            "not counted, since before the generator's first step through the critic: "
            f"{count(early, 'pass')} of the DataLoader (--passes all counts them)"
        )
    resumed = progress.counted and progress.epoch  # by a counter, inside an epoch that goes on
    if config.gamma < 1 and not ended and not resumed:
        fed = tracker.fed or progress.counted or config.every != "epoch"
        unfed = "" if fed else " (no DataLoader fed a generator step)"
        yield f"k never decayed{unfed}: pass {_sooner(tracker)}"


def _sooner(tracker: EpochTracker) -> str:
    """The flag by which k falls earlier."""
    every = tracker.topk.config.every
    return "--every N" if every == "epoch" else f"an --every below {every}"
