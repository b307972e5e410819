"""TopK: the settings, the schedule, the gates and what they counted, in one object."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topk_plugin.config import TopKConfig
from topk_plugin.core import ranking
from topk_plugin.core.choice import (
    BALLOT,
    CALLS,
    KEPT,
    NONFINITE,
    ROWS,
    TALLY_SIZE,
    THRESHOLD,
    Choice,
    GateState,
    Select,
)
from topk_plugin.core.ledger import Arrival, StepLedger
from topk_plugin.core.optimizers import listen
from topk_plugin.core.outputs import companions, with_replaced
from topk_plugin.core.schedule import k_of
from topk_plugin.core.score_gate import Followed, FollowGate, ScoreGate
from topk_plugin.errors import (
    ConfigError,
    DirectionUnknown,
    GeneratorStepUnknown,
    ResumeMismatch,
    ScoreShapeError,
)
from topk_plugin.hooks import Call, Progress, Selection
from topk_plugin.plugins.calls import first_result, observe, replacing, selection
from topk_plugin.plugins.manager import plugin_manager

VOTING_STEPS = 100
"""Generator steps that vote on the direction, usually while k = B. Later votes would let a
target-seeking loss such as LSGAN turn the direction round."""

AUDITED_STEPS = 2
"""Shielded generator steps that are checked for a path around the critic's outputs."""

STATE_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What happened so far (see :meth:`TopK.report`)."""

    steps: int  # generator steps gated, those with k = B included
    epochs: int  # epochs ended
    fraction: float  # of a batch that is kept now
    rows: int  # rows that generator steps sent through the gate
    dropped: int  # rows of them that were dropped
    nonfinite: int  # scores that were NaN or infinite
    direction: str  # "high", "low", or "undecided"
    threshold: float | None  # score of the worst row kept in the last generator step
    last_batch: int  # rows of a critic call in the last generator step (mean, if they differ)
    last_k: int  # rows of them that were kept (mean, if they differ)


class TopK:
    """Top-k training of a generator: keep the gradient of the k most realistic samples.

    In a loop of one's own the call is the paper's one line (section 3.3)::

        topk = TopK(gamma=0.99, nu=0.5)
        loss = generator_loss(topk(critic(fake)))
        ...
        topk.end_epoch()

    For a loop that is not one's own see :func:`topk_plugin.attach`.

    Args:
        config: the settings; or give them as keywords, see :class:`TopKConfig`.
        hooks: plugins beside the installed ones: modules or objects, see :mod:`topk_plugin.hooks`.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
        HookError: a plugin does not fit the hooks.
    """

    def __init__(
        self, config: TopKConfig | None = None, /, *, hooks: Sequence[Any] = (), **settings: Any
    ) -> None:
        if config is not None and not isinstance(config, TopKConfig):
            raise ConfigError(
                f"TopK: found {config!r} as its settings, expected a TopKConfig or keywords such "
                "as TopK(gamma=0.99, nu=0.5)"
            )
        if config is not None and settings:
            raise ConfigError("TopK: give a TopKConfig or keywords, not both")
        self.config = config or TopKConfig.from_config(settings, path="TopK")
        manager = plugin_manager(self.config.plugins, hooks)
        self.hook_errors = manager.errors
        self.plugins = replacing(manager)
        """Names of the plugins that change what the paper keeps."""
        self.select = selection(manager)
        self._ask_scores = first_result(manager, "topk_scores")
        self._ask_fraction = first_result(manager, "topk_fraction", needed=True)
        self._tell_selected = observe(manager, "topk_selected")
        self._tell_epoch = observe(manager, "topk_epoch_ended")
        self.follows = self.config.companions == "follow"
        """Whether the critic's other outputs lose the dropped rows' gradient too."""
        self.epoch = self.first_epoch = self.config.start_epoch
        self.steps = self.first_step = 0  # first_: where this process began
        self.pass_complete = False  # the epoch's last batch was delivered
        self.counted = False  # an upstream counter tells the epochs
        self.ledger = StepLedger(self._count)
        self.observers: list[Callable[[Selection], None]] = []
        self._paused = 0
        self._marked = 0
        self._unaudited = AUDITED_STEPS
        self._bypassed: list[Tensor] = []  # what the audits found, not yet read
        self._voting = VOTING_STEPS if self.config.direction == "auto" else 0
        sign = {"auto": 0.0, "high": 1.0, "low": -1.0}[self.config.direction]
        self.assumed = 0.0  # direction, 1 high or -1 low, that an adapter states
        self._latest: Followed | None = None  # the latest gated call, where outputs may follow it
        self._held: float | None = None  # fraction that is kept whatever the epoch
        self.fraction = self.fraction_at(self.epoch)
        """Of a batch, what is kept now; 1 if disabled."""
        self._fraction = torch.tensor(self.fraction, dtype=torch.float64)
        self._decided = torch.tensor(sign, dtype=torch.float64)
        self._vote = torch.zeros((), dtype=torch.float64)
        self._disagreed = torch.zeros((), dtype=torch.float64)
        self._inbox = torch.zeros(TALLY_SIZE, dtype=torch.float64)  # line A, not yet counted
        self._totals = torch.zeros(TALLY_SIZE, dtype=torch.float64)
        self._last = torch.zeros(TALLY_SIZE, dtype=torch.float64)

    @classmethod
    def from_args(cls, args: argparse.Namespace, prefix: str = "topk") -> TopK:
        """From the flags that :func:`topk_plugin.add_arguments` added; off without ``--topk``."""
        return cls(TopKConfig.from_args(args, prefix))

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> TopK:
        """From a mapping of settings, such as a section of a YAML file."""
        return cls(TopKConfig.from_config(mapping))

    # --- schedule -------------------------------------------------------------------------------

    def k(self, batch: int) -> int:
        """Rows kept of a batch of ``batch`` rows now."""
        return k_of(self.fraction, batch)

    def end_epoch(self) -> None:
        """One pass over the real data ended: k decays (paper, section 3.2)."""
        self.epoch += 1
        self.pass_complete = False
        self._refresh()
        if self._tell_epoch is not None:
            self._tell_epoch(progress=Progress(self.epoch, self.steps))
        self.check_audits()

    def begin_at(self, epoch: int, steps: int) -> None:
        """Go on from a counter that the loop itself keeps: epochs ended, generator steps done.

        What this process counted before, in another training, stays in its verdict.
        """
        self.first_epoch += epoch - self.epoch
        self.first_step += steps - self.steps
        self.epoch, self.steps = epoch, steps
        self.pass_complete = False
        self._refresh()

    def hold(self, fraction: float) -> None:
        """Keep ``fraction``, in (0, 1], of each batch from now on, whatever the epoch; to audit."""
        self._held = fraction
        self._refresh()

    def _refresh(self) -> None:
        self.fraction = self.fraction_at(self.epoch) if self._held is None else self._held
        self._fraction.fill_(self.fraction)

    def fraction_at(self, epoch: int) -> float:
        """Of a batch, what is kept after ``epoch`` ended epochs; 1 if disabled.

        Raises:
            HookError: the hook topk_fraction gave no number in (0, 1].
        """
        if not self.config.enabled:
            return 1.0
        progress = Progress(epoch, self.steps)
        fraction = self._ask_fraction(progress=progress, config=self.config)
        return float(fraction)

    # --- gating ---------------------------------------------------------------------------------

    def __call__(self, scores: Any) -> Any:
        """The paper's one line: scores in, the same scores out, their gradient kept for k rows.

        The shape stays, so labels of the batch's size still fit.

        Args:
            scores: the critic's output in the generator step: (B,), (B, 1), (B, 1, 1, 1), a patch
                map (B, 1, H, W), or a tuple, list or dict that holds it.

        Raises:
            ScoreShapeError: no score per sample in it.
        """
        if not self.config.enabled or self._paused or not torch.is_grad_enabled():
            return scores
        return self._gate(scores, self.config.reduction, self.select)

    def follow(self, output: Any) -> Any:
        """Another output of the critic for the samples of the latest gated call, unchanged.

        Under ``companions="follow"`` the rows that that call drops send no gradient through it.

        Args:
            output: a tensor (B, ...), or a tuple, list or dict of them.

        Raises:
            DirectionUnknown: k < B, the direction is "auto", and no generator step voted yet.
        """
        followed = self._latest
        if not self.follows or followed is None or self.is_paused or not torch.is_grad_enabled():
            return output
        batch = len(followed.ranking)
        first = self.steps == self.first_step and not self.assumed
        if first and self.k(batch) < batch and self.direction_unseen:
            raise DirectionUnknown(
                f"follow: {self.k(batch)} of {batch} rows are to be kept, but no loss has been "
                "seen, so which end is realistic is unknown. Give "
                'TopK(direction="high"), or "low" for energies.'
            )
        tensors = companions(output, [], len(followed.ranking))
        if not tensors:
            return output
        return with_replaced(output, tensors, FollowGate.apply(followed, *tensors))

    def gather(self, scores: Tensor, *companions: Tensor) -> Any:
        """The literal form: the k rows themselves, for losses that couple the rows of a batch.

        The rows keep their order in the batch, so that at k = B nothing changes. Companions
        (labels, auxiliary outputs, real scores they are paired with) follow.

        Args:
            scores: (B, ...) one score per sample.
            companions: tensors (B, ...).

        Returns:
            (k, ...) scores; with companions a tuple of them all.

        Raises:
            ScoreShapeError: a companion has another number of rows.
            DirectionUnknown: k < B, the direction is "auto", and no generator step voted yet.
        """
        batch, order = self._rank([scores], bool(self.config.heads))
        for companion in companions:
            if companion.shape[:1] != scores.shape[:1]:
                raise ScoreShapeError(
                    f"gather: a companion has shape {tuple(companion.shape)}, expected {batch} "
                    "rows, as many as the scores have"
                )
        if self.is_paused:
            return (scores, *companions) if companions else scores
        k, kept, select = self.k(batch), None, self.select
        if k < batch:
            if self.direction_unseen:
                raise DirectionUnknown(
                    f"gather: {k} of {batch} rows are to be kept, but no loss has been seen, so "
                    'which end is realistic is unknown. Give TopK(direction="high"), or "low" for '
                    "energies."
                )
            state = self.gate_state(order.device)
            vote = torch.where(state.decided != 0, state.decided, state.vote)
            order = order * torch.where(vote < 0, -1.0, 1.0).to(order.dtype)
            mask = self.select(order, torch.full_like(self._fraction, k))
            if self.select is ranking.kept_rows:
                # the k kept positions in batch order, without asking the device how many they are
                kept = torch.argsort((~mask).to(torch.int8), stable=True)[:k]
            else:  # a plugin may keep more or fewer
                kept = mask.nonzero().flatten()

                def select(scores: Tensor, k: Tensor) -> Tensor:
                    return mask  # asked once: it may draw at random

        # in front of the selection, so that the loss votes and the dropped rows are counted
        gated = self._gate(scores, "none", select) if torch.is_grad_enabled() else scores
        rows = [t if kept is None else t.index_select(0, kept) for t in (gated, *companions)]
        return tuple(rows) if companions else rows[0]

    @contextmanager
    def generator_step(self) -> Iterator[None]:
        """Marks a generator step by hand: its forward and backward, perhaps its optimizer step.

        Needed with ``attach`` or ``topk run`` where one optimizer owns both networks, or where
        optimizers are not those of torch.optim.
        """
        self.ledger.explicit = True
        self._marked += 1
        try:
            yield
        except BaseException:
            self.ledger.forget_known()
            raise
        finally:
            self._marked -= 1
        if not self._marked:
            self.ledger.settle_known()

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

    @property
    def is_marked(self) -> bool:
        """Inside ``with topk.generator_step()``."""
        return bool(self._marked)

    @property
    def audits(self) -> bool:
        """Shielded calls are still checked for paths around the critic's outputs."""
        return self._unaudited > 0

    def to(self, device: torch.device | str) -> TopK:
        """Moves what the gates read to ``device``; otherwise done at the first gated call."""
        for name in ("_fraction", "_decided", "_vote", "_disagreed", "_inbox", "_totals", "_last"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def gate_state(self, device: torch.device) -> GateState:
        """The tensors that gates on ``device`` read."""
        if self._fraction.device != device:
            self.to(device)
        return GateState(self._fraction, self._decided, self._vote)

    # --- counting -------------------------------------------------------------------------------

    def heads_of(self, output: Any, batch: int | None) -> tuple[list[Tensor], bool]:
        """The score tensors of a critic's output, and whether they were named as such.

        Raises:
            ScoreShapeError: no score in it.
            HookError: a plugin named something else than a tensor of the output.
        """
        answer = self._ask_scores(output=output)
        if answer is None:
            return ranking.score_heads(output, batch, self.config.heads), bool(self.config.heads)
        heads = [answer] if isinstance(answer, Tensor) else list(answer)
        return heads, True

    def _rank(self, heads: list[Tensor], named: bool) -> tuple[int, Tensor]:
        """The batch size and the (B,) ranking of a critic output whose input is not known."""
        if not heads[0].dim():
            raise ScoreShapeError(
                "the critic's score has shape (): it is averaged inside the critic, or squeezed "
                "from a batch of one; expected one score per sample. Give top-k the scores before "
                "the mean, and squeeze one dimension by name (squeeze(1))."
            )
        batch = heads[0].shape[0]
        return batch, ranking.ranking_scores(heads, batch, named)

    def _gate(self, output: Any, weigh: str, select: Select) -> Any:
        heads, named = self.heads_of(output, None)
        if not any(head.requires_grad for head in heads):
            return output
        _, order = self._rank(heads, named)
        arrived = None
        if torch.compiler.is_compiling():
            self.ledger.line_compiled()
        else:
            arrived = self.ledger.line_arrive
            listen(self.ledger)
        state = self.gate_state(order.device)
        tensors = heads
        if self.follows and weigh != "none":
            tensors = heads + companions(output, heads, len(order))
            if not torch.compiler.is_compiling():
                self._latest = Followed(
                    order, state, weigh == "mean", select, self._inbox, self.assumed
                )
                select = self._latest.select if select is not ranking.kept_rows else select
        gated = ScoreGate.apply(
            weigh, select, arrived, self._inbox, len(heads), order, *state, *tensors
        )
        return with_replaced(output, tensors, gated)

    def _count(self, calls: list[Arrival], choices: list[Choice], maximizes: bool) -> None:
        """One generator step: votes, statistics, and k where it decays by steps."""
        tally = self._inbox.clone()
        self._inbox.zero_()
        self._latest = None
        for call in calls:
            tally += call.choice.tally.to(tally.device)
        if any(call.unshielded for call in calls):
            raise GeneratorStepUnknown(
                "the critic's parameters lie upstream of its own input (unrolled latent "
                "optimisation, a generator that reads the critic's features, or a critic of which "
                "only the last layers are attached), so no gate can spare the critic where nothing "
                "tells a generator step from a critic step; this generator step was left ungated. "
                "Attach the module that holds all layers of the critic, or mark the step: "
                "`with topk.generator_step():` around its forward and backward."
            )
        if maximizes and self.config.direction == "auto":
            raise DirectionUnknown(
                "the generator's optimizer maximises, so the sign of the scores' gradient does not "
                "say which end is realistic. Set the direction: --direction high (or "
                'TopK(direction="high")) if the critic gives real samples high scores, else low.'
            )
        self.steps += 1
        if any(call.box.plain for call in calls):
            self._unaudited -= 1
            self._bypassed += [flag for call in calls for flag in call.box.bypassed]
        if self._voting:
            ballots = [call.choice.tally[BALLOT].to(tally.device) for call in calls]
            self._vote += tally[BALLOT].sign()
            if len(ballots) > 1:
                cast = torch.stack(ballots)
                self._disagreed += ((cast.min() < 0) & (cast.max() > 0)).to(torch.float64)
            self._voting -= 1
            if not self._voting:
                self.check_direction()
                if float(self._vote):
                    self._decided.copy_(self._vote.sign())
                else:  # a saturated loss sent no gradient so far
                    self._voting = VOTING_STEPS
        self._totals += tally
        self._last.copy_(tally)
        step = Selection(
            self.steps,
            self.epoch,
            sum(call.batch for call in calls),
            tally,
            tuple(Call(choice.scores, choice.kept) for choice in choices),
        )
        for observer in list(self.observers):
            observer(step)
        if self._tell_selected is not None:
            self._tell_selected(selection=step)
        if self.config.every != "epoch" and self.steps % self.config.every == 0:
            self.end_epoch()

    def check_audits(self) -> None:
        """Reads what the audits of shielded steps found (the device is waited for, once).

        Raises:
            GeneratorStepUnknown: the loss reads the critic past its outputs.
        """
        bypassed = any(bool(flag) for flag in self._bypassed)
        self._bypassed.clear()
        if bypassed:
            raise GeneratorStepUnknown(
                "the generator's loss reads the critic not only through what it returns "
                "(features kept in an attribute or taken by a hook, for example), and that part "
                "is lost where nothing tells a generator step from a critic step. Mark the "
                "generator step, `with topk.generator_step():` around its forward and backward, "
                "or let the critic return what the loss reads."
            )

    def check_direction(self) -> None:
        """Reads the vote (the device is waited for).

        Raises:
            DirectionUnknown: the calls of most generator steps asked for opposite directions.
        """
        if self.config.direction != "auto" or float(self._decided):
            return
        voted, disagreed = VOTING_STEPS - self._voting, int(self._disagreed)
        if 2 * disagreed > voted:
            raise DirectionUnknown(
                f"in {disagreed} of {voted} generator steps the loss raised the scores of one "
                "critic call and lowered those of another, so it does not say which scores are "
                'realistic. Set the direction: --direction high (or TopK(direction="high")) if '
                "the critic gives real samples high scores, low if it gives them low ones."
            )

    @property
    def direction_unseen(self) -> bool:
        """The direction is read from the loss, and no generator step has shown it yet."""
        return self._voting == VOTING_STEPS

    @property
    def direction(self) -> str:
        """Which scores are realistic: "high", "low", or "undecided" (the device is waited for)."""
        sign = float(self._decided) or float(self._vote) or float(self._inbox[BALLOT])
        return "undecided" if not sign else "high" if sign > 0 else "low"

    def report(self) -> Report:
        """What was gated so far (the device is waited for)."""
        totals = (self._totals + self._inbox).tolist()  # line A may have seen no optimizer yet
        rows, kept, nonfinite = (int(totals[i]) for i in (ROWS, KEPT, NONFINITE))
        last = self._last.tolist()
        calls = max(1, int(last[CALLS]))
        return Report(
            steps=self.steps,
            epochs=self.epoch,
            fraction=self.fraction,
            rows=rows,
            dropped=rows - kept,
            nonfinite=nonfinite,
            direction=self.direction,
            threshold=last[THRESHOLD] / calls if self.steps else None,
            last_batch=round(last[ROWS] / calls),
            last_k=round(last[KEPT] / calls),
        )

    # --- resume ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, in types that ``torch.load(weights_only=True)`` takes."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch + self.pass_complete,
            "steps": self.steps,
            # on the device: some loops take the critic's state_dict at every step
            "votes": torch.stack([self._vote, self._decided, self._disagreed]),
            "voting": self._voting,
            "settings": self.config.ranking_settings() | {"plugins": self.plugins},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            ResumeMismatch: it was written under other settings, or ``start_epoch`` contradicts it.
        """
        mine = self.config.ranking_settings() | {"plugins": self.plugins}
        theirs = TopKConfig().ranking_settings() | state["settings"]
        differ = [
            f"{name}: {value!r} in the checkpoint, {mine.get(name)!r} now"
            for name, value in theirs.items()
            if value != mine.get(name)
        ]
        if self.config.start_epoch and state["epoch"] != self.config.start_epoch:
            differ.append(
                f"epoch: {state['epoch']} in the checkpoint, start_epoch "
                f"{self.config.start_epoch} now"
            )
        if differ:
            raise ResumeMismatch(
                "the checkpoint was written under other top-k settings:\n  "
                + "\n  ".join(differ)
                + "\nResume with the settings of the checkpoint, or start anew without it."
            )
        self._voting = int(state["voting"])
        for tensor, value in zip(
            (self._vote, self._decided, self._disagreed), state["votes"], strict=True
        ):
            tensor.copy_(value)
        self.begin_at(int(state["epoch"]), int(state["steps"]))
