"""Finds the critics of a loop in which nobody named them, and attaches them.

While it looks there are no gates, only hooks that read gradients: k = B then, and nothing is lost.
It decides when the first pass over the data ends, at the latest, and looks again when optimizers
are built. Where a checkpoint says which critics were found they are attached at their first call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from topk_plugin.core.ledger import hand_over
from topk_plugin.core.optimizers import building, watch_zeroing
from topk_plugin.core.parameters import owned_by
from topk_plugin.errors import ConfigError, GeneratorStepUnknown, NoEffectError, TopKError
from topk_plugin.finding import words
from topk_plugin.finding.backlog import Backlog
from topk_plugin.finding.calls import Calls
from topk_plugin.finding.candidate import Candidate
from topk_plugin.finding.found import Found, Latecomers
from topk_plugin.finding.identity import Places, called, flag, like, plain
from topk_plugin.finding.owners import Owners
from topk_plugin.finding.rules import Verdict, judge
from topk_plugin.hooks import Selection
from topk_plugin.loop.attach import Attachment
from topk_plugin.loop.intercept import Interceptor, Watch, interceptor_of, is_intercepted
from topk_plugin.loop.resume import ResumeRecord, records_in
from topk_plugin.loop.wrappers import entrances
from topk_plugin.monkeypatch import ClassPatches
from topk_plugin.streams import count, warn
from topk_plugin.topk import TopK

L = TypeVar("L")


class Finder:
    """Finds the critics of what is trained with ``topk``, between ``start()`` and ``stop()``."""

    def __init__(self, topk: TopK) -> None:
        self.topk = topk
        self.found: list[Found] = []
        self.refused: TopKError | None = None  # raised, perhaps caught by the script
        self.owners, self.places = Owners(), Places()
        self.late = Latecomers(topk, self.owners, self.places)
        self.calls: Calls | None = None  # are looked at
        self._watch = Watch(self._see)
        self._left: dict[Candidate, Verdict] = {}  # were looked at, and are none so far
        self._generators: set[int] = set()  # backward passes of the generator's steps
        self._backlog = Backlog(topk)
        self._told = False  # that others may be critics, too
        self._later = 0  # steps of the generator's optimizer since a critic was found
        self._counted = False  # the present optimizer step is the generator's
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._undo = ExitStack()
        self._loaded: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # from a checkpoint

    # --- on and off -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look."""
        ledger = self.topk.ledger
        self.owners.take_all()
        self._record = ResumeRecord(None, self.topk, gated=True)
        self._listen(ledger.after_step, self._optimizer_stepped)
        self._listen(ledger.after_zeroing, self._zeroed)
        self._listen(self.topk.observers, self._step_counted)
        self._listen(building, self._built)
        self._listen(_finders, self)
        self._undo.callback(watch_zeroing())
        self._undo.callback(self._record.remove)
        _loads.wrap(nn.Module)
        self._undo.callback(_loads.unwrap, nn.Module)
        self._look()

    def _listen(self, listeners: list[L], mine: L) -> None:
        listeners.append(mine)
        self._undo.callback(listeners.remove, mine)

    def stop(self) -> None:
        """Put everything back as it was; twice is fine."""
        self._look_away()
        self._watch.stop()
        self._undo.close()
        for found in self.found:
            found.attachment.remove()

    def _look(self) -> None:
        if self.calls is None:
            self.calls = Calls(self.topk, self.owners, self.places, self._attached)
            self._watch.start()

    def _look_away(self) -> None:
        if self.calls is not None:
            critics = (found.critic() for found in self.found)
            self._watch.narrow({type(plain(one)) for one in critics if one is not None})
            self.calls.stop()
            self.calls = None
            self._generators.clear()
            self._backlog.clear()

    def _see(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.calls is None and self.late.may_be(module, self.found):
            self._look()
        if self.calls is None:
            return original(*args, **kwargs)
        return self.calls.see(module, original, args, kwargs)

    # --- what happens -----------------------------------------------------------------------------

    def _built(self, optimizer: Optimizer) -> None:
        """Something new may be trained."""
        self.owners.take(optimizer)
        self._look()

    def _zeroed(self, parameters: set[int]) -> None:
        if self.calls is not None:
            self.calls.zeroed(parameters)

    def _step_counted(self, step: Selection) -> None:
        self._counted = True

    def _optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An outermost step ended, and the run's own ledger has settled it."""
        if optimizer not in self._stepped:  # a critic may be trained from now on only
            self._stepped.add(optimizer)
            self._built(optimizer)
        if self.found and optimizer in self.topk.training.optimizers:
            self._later += 1
        if self.calls is not None:
            self._settle(self.calls, optimizer)
        self._counted = False

    def _settle(self, calls: Calls, optimizer: Optimizer) -> None:
        """A step, of whatever it was."""
        self.owners.take(optimizer)
        owned, through = owned_by(optimizer).ids, {}
        for one in calls.candidates:
            settled = one.optimizer_stepped(optimizer, owned)
            if settled is not None:
                self._generators.update(*(call.tasks for call in settled.calls))
                if settled.pushed:
                    through[one] = settled
        if through:
            self._backlog.add(optimizer, through, self._counted)
        calls.passes.stepped(self._counted or bool(through or calls.of_one_optimizer))
        self._decide(calls, calls.passes.over)

    def _decide(self, calls: Calls, last: bool) -> None:
        """Attach what is clear by now.

        Args:
            last: the first pass ends.

        Raises:
            NoEffectError: nothing is clear, and there is no later.
            GeneratorStepUnknown: the same, and one optimizer owns all networks.
            ConfigError: k < B from the first step, and the steps before went ungated.
        """
        candidates = [one for one in calls.candidates if one.outputs or one.outputs.odd]
        known = {found.like for found in self.found}
        seen = [one.seen(self._generators) for one in candidates]
        if candidates:
            self._left = dict(zip(candidates, judge(seen, known, last), strict=True))
        fresh = {one: self._left[one].heads for one in candidates if self._left[one].heads}
        if fresh:
            self._take(fresh, calls)
        if last and self.found:
            self._tell_of_others()
            self.late.judged(self._left)
            self._look_away()
        elif last and calls.of_one_optimizer:
            self.refused = GeneratorStepUnknown(words.one_optimizer(calls.of_one_optimizer))
            raise self.refused
        elif last and all(one.helps for one in seen if one.steps):
            self._backlog.clear()
            calls.begin_anew()  # networks that learn together, before any critic is trained
        elif last:
            self.refused = self.nothing()
            raise self.refused

    # --- attaching --------------------------------------------------------------------------------

    def _take(self, fresh: dict[Candidate, tuple[str, ...]], calls: Calls) -> None:
        """Attach critics that were found, and count the generator's steps before."""
        at = self.topk.training.progress
        if not self.found and not at.is_held and self._backlog.any_below(fresh):
            self._refuse(fresh)
        for one, heads in fresh.items():
            del self._left[one]
            owner, scorer = one.owner(), one.scorer()
            if owner is not None and scorer is not None:
                named = () if self.topk.config.heads else one.outputs.named(heads)
                self._attach(owner, scorer, [*one.entrances], named)
                self._backlog.through(one, owner)
            one.taken = True
            hand_over(one.ledger, self.topk.ledger)
        if not at.is_held:  # an audit's: those steps were none of it
            self._backlog.count(fresh, calls.passes)

    def _tell_of_others(self) -> None:
        """Warns of what may be a critic too, once: a run may take days until its verdict."""
        unsure = [one for one, verdict in self._left.items() if verdict.maybe]
        if unsure and not self._told:
            self._told = True
            flags = [found.flag for found in self.found] + [one.flag() for one in unsure]
            warn(words.unsure([one.name for one in unsure], flags), stacklevel=2)

    def _refuse(self, fresh: dict[Candidate, tuple[str, ...]]) -> None:
        """Raises ConfigError where the critics can be named, to gate them from the first step."""
        flags = dict.fromkeys(one.flag(heads) for one, heads in fresh.items())
        if None not in flags:
            self.refused = ConfigError(words.below([one.name for one in fresh], flags))
            raise self.refused

    def _attach(
        self, owner: nn.Module, scorer: nn.Module, called_by: Sequence[nn.Module],
        heads: tuple[str, ...],
    ) -> None:  # fmt: skip
        identity = self.places.of(owner, scorer)._replace(heads=heads)
        modules = {id(m): m for one in (*called_by, scorer) for m in entrances(one)}
        free = [module for module in modules.values() if not is_intercepted(module)]
        attachment = Attachment(free, owner, self.topk, heads=heads)
        attachment.heads.seen = attachment.heads.found = True
        record = attachment.record
        record.loaded, record.found = scorer in self._loaded, self._record.found
        title = called(owner, identity.part)
        named = flag(owner, identity.part, heads)
        critic = weakref.ref(owner)
        self.found.append(Found(title, like(owner), identity, attachment, critic, named))
        if identity.saved not in self.topk.found:
            self.topk.found.append(identity.saved)
        self._record.remove()  # those of the critics go on

    # --- critics that a checkpoint says -----------------------------------------------------------

    def loading(self, module: nn.Module, state: Any) -> None:
        """``module`` is going to load ``state``."""
        if self.found:
            return
        self._loaded.update(module.modules())
        for record in records_in(state):
            if not self._record.found:
                self._record.restore(record)

    def _attached(self, module: nn.Module) -> Interceptor | None:
        """What a call of ``module`` has to be led through from now on, if anything."""
        calls = self.calls
        if calls is not None and calls.passes.ended:  # and nobody could know
            self._decide(calls, last=True)
        for one in self.late.due(module, self.found):
            scorer = plain(module).get_submodule(one.part)
            self._attach(module, scorer, [] if one.part else [module], one.heads)
        return interceptor_of(module)

    # --- what to say ------------------------------------------------------------------------------

    def __str__(self) -> str:
        present = [f for f in self.found if f.critic() in self.topk.training.critics]
        named = {f.title: f.identity.heads for f in present or self.found}
        shown = [f"{t}{'=' if h else ''}{','.join(h)}" for t, h in named.items()]
        return f"found critic{'s' * (len(shown) > 1)} {', '.join(shown) or '(none yet)'}"

    def left_out(self) -> list[str]:
        """What went ungated, and which modules were looked at and not taken; a line each."""
        critics = {id(found.critic()) for found in self.found}  # some came after a pass
        left = [(one, v) for one, v in self._left.items() if id(one.owner()) not in critics]
        lines = [f"not taken: {words.of(one, v, self.owners, v.maybe)}" for one, v in left]
        if self._backlog.ungated:
            steps = f"{count(self._backlog.ungated, 'generator step')} at k < B"
            lines.append(f"{steps} went ungated before their critic was found")
        return lines

    def lost(self) -> TopKError | None:
        """What to say where critics were found, and nothing was gated from then on."""
        if not self._later or any(found.attachment.took_part for found in self.found):
            return None
        flags = [found.flag for found in self.found]
        return NoEffectError(words.lost(str(self), self._later, flags))

    def nothing(self) -> TopKError:
        """Why nothing was found."""
        steps = self.topk.ledger.optimizer_steps
        table = [words.of(one, verdict, self.owners) for one, verdict in self._left.items()]
        return NoEffectError(words.nothing_found(table, steps, len(self.owners)))


_finders: list[Finder] = []


def _telling(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for finder in list(_finders):
            finder.loading(self, args[0] if args else kwargs.get("state_dict"))
        return load(self, *args, **kwargs)

    return load_state_dict


_loads = ClassPatches({"load_state_dict": _telling})
