"""What `topk check` prints of an audit."""

from __future__ import annotations

import math

from topk_plugin.check.audit import Audit
from topk_plugin.check.literal import Pass
from topk_plugin.core.schedule import first_fall, k_of
from topk_plugin.run.activation import Activation
from topk_plugin.streams import count

COARSE = 4
"""Fewer rows that can ever be dropped are pointed out."""


class Findings:
    """What is printed."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.table: list[tuple[str, ...]] = []
        self.findings: list[tuple[str, str]] = []
        self.agrees = True

    def find(self, what: str, text: str, agrees: bool = True) -> None:
        """One line; of what does not agree it says so."""
        self.agrees &= agrees
        self.findings.append((what, text if agrees else f"DISAGREES: {text}"))

    def note(self, text: str) -> None:
        """Something that no formula forbids, and that may still not be meant."""
        self.findings.append(("note", text))

    def lines(self) -> list[str]:
        """As text, whose width is that of its longest line, also in a pipe."""
        widths = [max(map(len, column)) for column in zip(*self.table, strict=True)]
        text = [self.title, ""]
        for row in self.table:
            cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            text.append("  " + "  ".join(cells))
        text.append("")
        rows = [*self.findings, ("result", "agrees" if self.agrees else "DISAGREES")]
        width = max(len(what) for what, _ in rows)
        return text + [f"{what.ljust(width)}  {finding}" for what, finding in rows]


def findings(audit: Audit, activation: Activation, title: str) -> Findings:
    """What the audit found; at least one step was audited."""
    found = Findings(title)
    steps = audit.telling or audit.steps
    found.table.append(("step", "critic calls", "k of B", "rows off", "error", "changed"))
    for step in steps[: audit.wanted]:
        ks = dict.fromkeys(f"{it.k} of {it.batch}" for it in step.gates)
        error, changed = f"{step.error:.1e}", f"{step.changed:.2g}"
        found.table.append(
            (
                str(step.number),
                str(len(step.gates)),
                ", ".join(ks),
                str(sum(it.off or 0 for it in step.gates)),
                *(("-", "-") if step.reasons else (error, changed)),
            )
        )
    _gradients(audit, found)
    _rows(audit, found)
    _critic(audit, found)
    _losses(audit, found)
    _companions(audit, found)
    for text in dict.fromkeys(audit.unaudited):
        found.find("not audited", f"{count(audit.unaudited.count(text), 'generator step')}: {text}")
    _batches(audit, found)
    _directions(audit, found)
    _schedule(audit, activation, found)
    for text in activation.seam.left_out:
        found.note(text)
    return found


def _gradients(audit: Audit, found: Findings) -> None:
    """Whether the gradients are those of the formula, and whether that says anything."""
    compared = audit.compared
    if compared:
        error, change = max(s.error for s in compared), max(s.changed for s in compared)
        bound, dtype = max((one.bound, one.dtype) for step in compared for one in step.passes)
        noise = max(s.noise for s in compared)
        device = f"; two runs of one backward differ by {noise:.1e} here" if error > bound else ""
        found.find(
            "gradient",
            f"relative error against the literal formula at most {error:.1e} "
            f"(bound {bound:.0e}, {dtype}{device})",
            all(step.agrees for step in compared),
        )
        found.find("changed by top-k", f"up to {change:.2g} of the generator's gradient")
    for reason in dict.fromkeys(reason for step in audit.steps for reason in step.reasons):
        found.find("gradient", f"not audited: {reason}")
    batch = max(it.batch for step in audit.steps for it in step.gates)
    silent = len(audit.steps) - len(audit.telling)
    saturated = f"{count(silent, 'generator step')}, the scores got no gradient (a saturated loss?)"
    if not audit.telling:
        found.find("vacuous", f"in all {saturated}, so nothing was there to audit", False)
    elif silent:
        found.note(f"in {saturated}; they are left out above")
    elif all(it.k == it.batch for step in audit.steps for it in step.gates):
        found.find("vacuous", f"k = B = {batch} in every step: such a batch has no rest", False)
    elif compared and not any(step.changed for step in compared):
        found.find("vacuous", "the rows that top-k dropped had no gradient", False)


def _rows(audit: Audit, found: Findings) -> None:
    """Whether the rows are those of a plain sort."""
    gates = [it for step in audit.steps for it in step.gates]
    off, rows = sum(it.off or 0 for it in gates), sum(it.batch for it in gates)
    if off:
        found.find(
            "rows", f"{off} of {rows} are not the ones that should be kept or dropped", False
        )
    elif any(it.chosen for it in gates):
        found.find("rows", "chosen by a plugin; the gradient is audited with the rows it chose")
    else:
        found.find("rows", f"those of a plain sort ({count(rows, 'score')})")
    if any(training.parts.told for training in audit.topk.trainings.all):
        found.note(
            "the loss reads the scores of a part of each batch; this audit ranked all of it, a run "
            "ranks that part alone"
        )


def _critic(audit: Audit, found: Findings) -> None:
    """What became of the critic's own gradient, in generator steps and in critic steps."""
    passes = [one for step in audit.steps for one in step.passes]
    shields = [one for one in passes if one.untouched is not None]
    if shields:
        found.find("critic's own gradient", *_touch(shields))
    elif all(step.frozen for step in audit.compared):
        if audit.compared:
            found.find("critic's own gradient", "none: it is frozen in the generator step")
    else:
        found.find("critic's own gradient", "masked as the generator's (score gate), and compared")
    spared = [one for one in audit.of_critic if one.untouched is not None]
    if spared:
        text, good = _touch(spared)
        found.find("critic steps", f"{text} ({count(len(spared), 'backward pass')})", good)
    masked = sum(any(it.mode == "score" for it in one.gates) for one in audit.of_critic)
    if masked:
        found.find(
            "critic steps",
            f"masked in {count(masked, 'backward pass')}, since the fakes are not detached and "
            f"gate is {audit.topk.config.gate!r}; leave it at auto",
            False,
        )
    for reason in dict.fromkeys(one.reason for one in audit.of_critic if one.reason):
        found.find("critic steps", f"not audited: {reason}")


def _touch(passes: list[Pass]) -> tuple[str, bool]:
    if not all(one.untouched for one in passes):
        return "not what it is without top-k", False
    if all(one.exactly for one in passes):
        return "untouched, bit by bit", True
    return "untouched, to rounding (this device adds up in another order each time)", True


def _losses(audit: Audit, found: Findings) -> None:
    """What the loss says to the kept scores alone."""
    what = "loss on kept scores"
    losses = audit.losses + [it for s in audit.steps for one in s.passes for it in one.losses]
    compared = [one for one in losses if one.error is not None]
    if compared:
        text = f"relative difference at most {max(one.error or 0.0 for one in compared):.1e}"
        agrees = all((one.error or 0.0) <= one.bound for one in compared)
        others = {one.other for one in compared}
        names = ", ".join(dict.fromkeys(one.operation for one in compared if one.operation))
        by = f" ({names})" if names else ""
        if not agrees and others <= {"mean", "sum"}:
            verb = "averages over" if others == {"mean"} else "sums over"
            text += f": the loss {verb} the batch, pass --reduction {others.pop()}"
        elif not agrees:
            text += (
                f": the loss couples the rows of a batch{by}, so dropping a row's gradient is not "
                "what the loss of the kept scores gives"
            )
        elif names:
            found.note(
                f"the loss couples the rows of a batch{by}, which did not show in these steps"
            )
        found.find(what, text, agrees)
    for reason in dict.fromkeys(one.reason for one in losses if one.reason):
        found.find(what, f"not audited: {reason}")


def _companions(audit: Audit, found: Findings) -> None:
    """Whether what the critic returns beside its scores follows the kept rows, as it should."""
    if audit.seam.adapter is None or len(audit.companions) <= len(audit.steps):
        return  # nothing but scores, or not seen
    setting = audit.topk.config.companions
    if (audit.seam.adapter.companions if setting == "auto" else setting) == "keep":
        if not all(audit.companions):  # else they are scores, too
            found.find("other outputs", "keep the gradient of all rows (companions)")
        return
    off = audit.companions.count(False)
    text = f"{off} of {len(audit.companions)} tensors do not follow the kept rows"
    found.find("other outputs", "follow the kept rows (companions)" if not off else text, not off)


def _batches(audit: Audit, found: Findings) -> None:
    """Small batches, and several of them in a step."""
    config = audit.topk.config
    passes = [one for step in audit.steps for one in step.passes]
    batch = max(it.batch for one in passes for it in one.gates)
    calls = max(len(one.gates) for one in passes)
    if calls > 1:
        found.note(f"{calls} critic calls in a backward pass: each ranks its own batch")
    times = max(len(step.passes) for step in audit.steps)
    if times > 1:
        found.note(
            f"{times} backward passes in a generator step: each batch of {batch} is ranked by "
            "itself"
        )
    least = k_of(config.nu, batch)
    if config.gamma < 1 and 0 < batch - least < COARSE:
        ks = ", ".join(str(k) for k in range(batch, least - 1, -1))
        found.note(f"a batch of {batch}: k can only be {ks}")


def _directions(audit: Audit, found: Findings) -> None:
    """Which scores the loss asks for, and whether anybody says otherwise."""
    config = audit.topk.config
    ballots = [{it.ballot for it in step.gates} - {0} for step in audit.steps]
    asked = set[int]().union(*ballots)
    split = sum(len(cast) > 1 for cast in ballots)
    if split:
        found.note(
            f"in {split} of {len(ballots)} generator steps the loss raises the scores of one "
            "critic call and lowers those of another: set --direction"
        )
    elif len(asked) > 1:
        found.note("the loss asks for high scores in some steps and for low ones in others")
    elif asked:
        want = "high" if asked == {1} else "low"
        if config.direction not in ("auto", want):
            found.note(
                f"direction is set to {config.direction}, and the loss asks for {want} scores"
            )
        declared = audit.seam.adapter.direction if audit.seam.adapter is not None else None
        if declared not in (None, want):
            found.note(
                f"the adapter says that {declared} scores are realistic, and the loss asks for "
                f"{want} ones"
            )


def _schedule(audit: Audit, activation: Activation, found: Findings) -> None:
    """When k falls, outside an audit, and whether this run comes to it."""
    config = audit.topk.config
    batch = max(it.batch for step in audit.steps for it in step.gates)
    first = first_fall(audit.topk.fraction_at, batch)
    if first is None:
        found.find("schedule", f"k stays {batch} of {batch}")
        found.note(f"k never falls with gamma = {config.gamma:g} and nu = {config.nu:g}")
        return
    epoch, k = first
    when = f"epoch {epoch}"
    if config.every != "epoch":
        when = count(epoch * config.every, "generator step")
    found.find("schedule", f"k first falls after {when} ({k} of {batch})")
    if config.every != "epoch":
        return
    planned = activation.seam.planned_epochs
    if planned is not None and epoch > audit.topk.training.progress.first_epoch + max(
        0, math.ceil(planned) - 1
    ):
        epochs = count(f"{planned:.3g}", "epoch")
        found.note(f"k stays {batch} of {batch} in this run, which has {epochs}")
    if not (activation.tracker.fed or audit.topk.training.progress.counted):
        found.note("no DataLoader fed a generator step, so k would never fall: pass --every N")
