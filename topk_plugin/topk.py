"""TopK: the settings, the schedule, the gates and what they counted, in one object."""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from topk_plugin.config import TopKConfig
from topk_plugin.core.arrival import Arrival, require_shield
from topk_plugin.core.counts import Report
from topk_plugin.core.direction import Direction
from topk_plugin.core.ledger import StepLedger
from topk_plugin.core.line import LineGate
from topk_plugin.core.progress import EpochCount
from topk_plugin.core.ranking import kept_rows
from topk_plugin.core.record import VERSION, require_record, require_same
from topk_plugin.core.schedule import k_of
from topk_plugin.core.scope import Scope
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.core.training import Training, Trainings
from topk_plugin.core.unended import HOW_TO_END, MANY, remind, unended
from topk_plugin.errors import ConfigError
from topk_plugin.hooks import Progress, Selection
from topk_plugin.plugins.calls import first_result, if_any, observe, replacing, selection
from topk_plugin.plugins.manager import plugin_manager
from topk_plugin.streams import warn

__all__ = ["Report", "TopK"]


class TopK:
    """Top-k training of a generator: keep the gradient of the k most realistic samples.

    In a loop of one's own the call is the paper's one line (section 3.3)::

        topk = TopK(gamma=0.99, nu=0.5)
        loss = generator_loss(topk(critic(fake)))
        topk.end_epoch()

    For a loop that is not one's own see :func:`topk_plugin.attach`.

    Args:
        config: the settings; or give them as keywords, see :class:`TopKConfig`.
        hooks: plugins beside the installed ones: modules or objects, see :mod:`topk_plugin.hooks`.
        group: under ``scope="global"`` the ranks whose rows compete; none: those of all processes.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, out of range or against another one.
        HookError: a plugin does not fit the hooks.
    """

    def __init__(
        self, config: TopKConfig | None = None, /, *, hooks: Sequence[Any] = (),
        group: ProcessGroup | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.config = _config_of(config, settings)
        self._given = hooks, group
        manager = plugin_manager(self.config.plugins, hooks)
        self.hook_errors = manager.errors
        self.plugins = replacing(manager)  # names of those that change what the paper keeps
        self.select = selection(manager)
        self._ask_fraction = first_result(manager, "topk_fraction", needed=True)
        self.tell_selected = observe(manager, "topk_selected")
        self._epoch_ended = _telling(observe(manager, "topk_epoch_ended"))
        self.follows = self.config.companions == "follow"  # the critic's other outputs, too
        self.scope = Scope(self.config.scope, group, self.select is not kept_rows)
        begin = partial(_training, self.config, self._ask_fraction, self.scope.sum)
        self.trainings = Trainings(partial(begin, self._epoch_ended))
        self.reminder = _reminder(self)
        self.ledger = StepLedger(partial(_count, self), self.trainings)
        to = (self.select, self.ledger, self.trainings, self.scope)
        self.line = LineGate(self.config.heads, if_any(manager, "topk_scores"), *to)
        self.observers: list[Callable[[Selection], None]] = []
        self.after_counting: list[Callable[[], None]] = []  # told of each generator step
        self.critics = self._paused = 0  # that are attached; depth of paused()
        self.found: list[list[Any]] = []  # critics that nobody named: see topk_plugin.finding
        self.distrusted: list[str] = []  # see topk_plugin.loop.places

    @classmethod
    def from_args(cls, args: argparse.Namespace, prefix: str = "topk") -> TopK:
        """From ``args``, by flags that add_arguments() added with ``prefix``; off without them."""
        return cls(TopKConfig.from_args(args, prefix))

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> TopK:
        """From a mapping of settings, such as a section of a YAML file."""
        return cls(TopKConfig.from_config(mapping))

    # --- schedule -------------------------------------------------------------------------------

    @property
    def training(self) -> Training:
        """The present training; see :mod:`topk_plugin.core.training`."""
        return self.trainings.current

    @property
    def epoch(self) -> int:
        """Epochs ended."""
        return self.training.progress.epoch

    @property
    def steps(self) -> int:
        """Generator steps counted."""
        return self.training.progress.steps

    @property
    def fraction(self) -> float:
        """Of a batch, what is kept now; 1 if disabled."""
        return self.training.progress.fraction

    def k(self, batch: int) -> int:
        """Rows kept of a batch of ``batch`` rows now."""
        return k_of(self.fraction, batch)

    def end_epoch(self) -> None:
        """One pass over the real data ended: k decays (paper, section 3.2)."""
        self.training.end_epoch("by end_epoch()")

    def begin_at(self, epoch: int, steps: int) -> None:
        """Go on from the loop's own counters: ``epoch`` epochs ended, ``steps`` generator steps."""
        self.training.progress.begin_at(epoch, steps)

    def fraction_at(self, epoch: int, steps: int | None = None) -> float:
        """Of a batch, what is kept after ``epoch`` ended epochs; 1 if disabled.

        Args:
            steps: generator steps counted by then; None: those until now.

        Raises:
            HookError: the hook topk_fraction gave no number in (0, 1].
        """
        steps = self.steps if steps is None else steps
        return _fraction_at(self.config, self._ask_fraction, epoch, steps)

    # --- gating ---------------------------------------------------------------------------------

    def __call__(self, scores: Any, heads: Sequence[str | int] = ()) -> Any:
        """The paper's one line: scores in, the same scores out, their gradient kept for k rows.

        The shape stays, so labels of the batch's size still fit.

        Args:
            scores: of the generator step: (B,), (B, 1), (B, 1, 1, 1), a patch map (B, 1, H, W), or
                a tuple, list or dict in which ``heads``, or else the settings, name the scores.

        Raises:
            ScoreShapeError: no score per sample in it.
        """
        if not self.config.enabled or self._paused or not torch.is_grad_enabled():
            return scores
        return self.line.gate(scores, self.config.reduction, self.select, self.follows, heads)

    def follow(self, output: Any) -> Any:
        """Another output of the critic for the samples of the latest gated call, unchanged.

        Under ``companions="follow"`` the rows that that call drops send no gradient through it.

        Args:
            output: a tensor (B, ...), or a tuple, list or dict of them.

        Raises:
            DirectionUnknown: k < B, the direction is "auto", and no generator step voted yet.
        """
        if not self.follows or self.is_paused or not torch.is_grad_enabled():
            return output
        return self.line.follow(output)

    def gather(self, scores: Tensor, *companions: Tensor) -> Any:
        """The literal form: the k rows themselves, for losses that couple the rows of a batch.

        The rows keep their order, so that at k = B nothing changes; companions follow.

        Args:
            scores: (B, ...) one score per sample.
            companions: tensors (B, ...): labels, auxiliary outputs, real scores of their pairs.

        Returns:
            (k, ...) scores; with companions a tuple of them all.

        Raises:
            ScoreShapeError: a companion has another number of rows.
            DirectionUnknown: k < B, the direction is "auto", and no generator step voted yet.
        """
        return self.line.gather(scores, companions, self.is_paused)

    def generator_step(self, spare: bool = False) -> AbstractContextManager[None]:
        """Marks a generator step by hand: its forward and backward, perhaps its optimizer step.

        Needed with ``attach`` or ``topk run`` where one optimizer owns both networks, or where
        optimizers are not those of torch.optim.

        Args:
            spare: attached critics form no gradient for their parameters inside, which is faster;
                only for loops that throw it away. They run as critics that are frozen by hand.

        Raises:
            ConfigError: no critic is attached that could be spared.
        """
        _require_critic(spare, self.critics)
        return self.ledger.marked(spare and self.config.enabled)

    def accumulate(self, steps: int) -> AbstractContextManager[None]:
        """The rows of ``steps`` micro-batches compete, as if they were one batch::

            with topk.accumulate(steps=4):
                losses = [generator_loss(topk(critic(generator(z)))) / 4 for z in micro_batches]
                sum(losses).backward()

        The critic scores generated samples ``steps`` times inside, and no backward may begin before
        the last, so all graphs are in memory. Losses that sum are not divided by ``steps``.
        Without it each micro-batch is ranked by itself.

        Raises:
            ConfigError: that is not so, or a plugin chooses rows.
        """
        return self.scope.accumulating(steps)

    def step(self) -> None:
        """Says by hand that the backward passes since the last step were one generator step."""
        self.ledger.mark()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Critic calls inside are left alone: samplers, critic steps, input gradients."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    @property
    def is_paused(self) -> bool:
        """Inside ``with topk.paused()``, or disabled."""
        return bool(self._paused) or not self.config.enabled

    def to(self, device: torch.device | str) -> TopK:
        """Moves what the gates read to ``device``; otherwise done at the first gated call."""
        self.training.to(device)
        return self

    # --- counting -------------------------------------------------------------------------------

    def check(self) -> None:
        """Reads what the first steps showed of the loss (the device is waited for, once).

        Raises:
            GeneratorStepUnknown: the loss reads the critic past its outputs.
            DirectionUnknown: critic calls of most generator steps asked for opposite directions.
        """
        for training in self.trainings.all:
            training.check()

    @property
    def direction(self) -> str:
        """Which scores are realistic: "high", "low", or "undecided" (the device is waited for)."""
        return self.training.direction

    def report(self, training: Training | None = None) -> Report:
        """What was gated so far in the present training (the device is waited for)."""
        return (training or self.training).report()

    def state_dict(self, training: Training | None = None) -> dict[str, Any]:
        """Everything a resumed run needs, in types that ``torch.load(weights_only=True)`` takes."""
        settings = self.config.ranking_settings() | {"plugins": self.plugins}
        of = (training or self.training).saved()
        return {"version": VERSION, **of, "settings": settings, **_learned(self)}

    def load_state_dict(self, state: Mapping[str, Any], training: Training | None = None) -> None:
        """Go on from the ``state`` of a :meth:`state_dict`, in the present training or another.

        Raises:
            ResumeMismatch: of other settings, or another epoch than ``start_epoch``; or no record.
        """
        _require_same_settings(self, state)
        _go_on(self, state, training or self.training)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, by ``copy`` or ``pickle``: its settings, plugins and epoch, and no critic."""
        return _copy, (self.config, *self._given, self.state_dict())


def _require_same_settings(topk: TopK, state: Mapping[str, Any]) -> None:
    require_record(state)
    mine = topk.config.ranking_settings() | {"plugins": topk.plugins}
    theirs = TopKConfig().ranking_settings() | state["settings"]
    require_same(mine, theirs, topk.config.start_epoch, state["epoch"])


def _copy(
    config: TopKConfig, hooks: Sequence[Any], group: ProcessGroup | None, state: dict[str, Any]
) -> TopK:
    topk = TopK(config, hooks=hooks, group=group)
    _go_on(topk, state, topk.training)
    return topk


def _go_on(topk: TopK, state: Mapping[str, Any], training: Training) -> None:
    training.load(state)
    topk.found = [[*one] for one in state.get("found", topk.found)]
    topk.distrusted += sorted({*state.get("distrusted", ())}.difference(topk.distrusted))


def _fraction_at(config: TopKConfig, ask: Callable[..., Any], epoch: int, steps: int) -> float:
    if not config.enabled:
        return 1.0
    return float(ask(progress=Progress(epoch, steps), config=config))


def _training(
    config: TopKConfig, ask: Callable[..., Any], over_ranks: Callable[[Tensor], tuple[Tensor, int]],
    epoch_ended: Callable[[EpochCount], None] | None, first: bool,
) -> Training:  # fmt: skip
    """A training that begins; it must not hold its TopK, which would never be gone."""
    fraction_at = partial(_fraction_at, config, ask)
    progress = EpochCount(fraction_at, config.start_epoch if first else 0)
    return Training(progress, Direction(config.direction, over_ranks), epoch_ended)


def _reminder(topk: TopK) -> weakref.finalize[..., TopK]:
    """Tells, when it is gone or the process ends, that no epoch ended, where k falls by epochs."""
    reminder, config = weakref.finalize(topk, remind, topk.trainings), topk.config
    if not config.enabled or config.every != "epoch" or 1 in (config.gamma, config.nu):
        reminder.detach()
    return reminder


def _learned(topk: TopK) -> dict[str, Any]:
    """What was learned of the loop, for a checkpoint; nothing of what is empty."""
    learned = {"found": [[*one] for one in topk.found], "distrusted": [*topk.distrusted]}
    return {name: value for name, value in learned.items() if value}


def _count(
    topk: TopK, calls: list[Arrival], choices: list[AnyChoice], optimizer: Optimizer | None
) -> None:
    """One generator step of ``topk``: votes, statistics, and k where it decays by steps."""
    gated = calls[0].training if calls else topk.training
    if calls and not gated.progress.begun and all(call.precedes for call in calls):
        return
    training = topk.trainings.counted(gated, optimizer)
    topk.line.settled()
    require_shield(calls)
    made = [call.choice for call in calls]
    tally = training.count(made, [call.box for call in calls], optimizer)
    training.counts.saw(choices, topk.scope.batches)
    if training.progress.steps == MANY and topk.reminder.alive and unended(topk.trainings) == MANY:
        warn(f"{MANY:,} generator steps, and no epoch has ended yet, so k is B. {HOW_TO_END}")
    for tell in list(topk.after_counting):
        tell()
    if topk.observers or topk.tell_selected is not None:
        at, rows = training.progress, sum(call.batch for call in calls)
        labels = [None] * (len(choices) - len(calls)) + [call.labels for call in calls]
        step = Selection(at.steps, at.epoch, rows, tally, choices, training.number, labels)
        for observer in list(topk.observers):
            observer(step)
        if topk.tell_selected is not None:
            topk.tell_selected(selection=step)
    if (every := topk.config.every) != "epoch" and training.progress.steps % every == 0:
        training.end_epoch(f"by --every {every}")


def _require_critic(spare: bool, attached: int) -> None:
    if spare and not attached:
        raise ConfigError(
            "generator_step(spare=True): found no critic that is attached, so there is none to "
            "spare; expected attach(critic, topk) before. Or freeze it by hand, "
            "critic.requires_grad_(False), while the generator steps."
        )


def _telling(tell: Any) -> Callable[[EpochCount], None] | None:
    return tell and (lambda at: tell(progress=Progress(at.epoch, at.steps)))


def _config_of(config: Any, settings: Mapping[str, Any]) -> TopKConfig:
    """A TopKConfig, or one made of keywords."""
    if config is not None and not isinstance(config, TopKConfig):
        raise ConfigError(
            f"TopK: found {config!r} as its settings, expected a TopKConfig or keywords such "
            "as TopK(gamma=0.99, nu=0.5)"
        )
    if config is not None and settings:
        raise ConfigError("TopK: give a TopKConfig or keywords, not both")
    return config or TopKConfig.from_config(settings, path="TopK")
