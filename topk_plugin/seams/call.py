"""The call seam: the functions that an adapter names are wrapped, as they are imported."""

from __future__ import annotations

import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from topk_plugin.adapter import Adapter, Wrapper
from topk_plugin.core.direction import SIGNS
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound, UnsupportedUpstream
from topk_plugin.loop.resume import ResumeRecord
from topk_plugin.monkeypatch import PatchLog
from topk_plugin.seams.epoch_counter import EpochCounter
from topk_plugin.source.rules import Rule
from topk_plugin.streams import count, warn
from topk_plugin.topk import TopK
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.fingerprint import Fingerprint, find
from topk_plugin.upstream.imports import wait_no_longer, when_imported

AuditLoss = Callable[[Callable[[Any], Any], Any], Any]


class CallSeam:
    """Wraps the functions of one adapter from ``apply()`` to ``undo()``.

    Args:
        adapter: what to wrap.
        topk: what the wrappers use.
        roots: folders of the launched checkout; a module from anywhere else is not the upstream
            that is meant, unless it belongs to the adapter's distribution.
        force: go on although the fingerprint does not match.
        in_source: `topk patch` has put the calls into the files already, so nothing is applied.
    """

    def __init__(
        self,
        adapter: Adapter,
        topk: TopK,
        roots: Iterable[Path] = (),
        force: bool = False,
        in_source: bool = False,
    ) -> None:
        self.adapter, self.topk, self.force, self.in_source = adapter, topk, force, in_source
        if topk.config.companions == "auto":
            topk.follows = adapter.companions == "follow"
        topk.training.vote.assumed = SIGNS[adapter.direction or "auto"]
        self.log = PatchLog()
        self.called = 0  # gated calls
        self.planned_epochs: float | None = None  # of this run, where the upstream says so
        self._epochs = EpochCounter(topk, adapter.upstream)
        self._applied = False
        self._wrapped_modules: set[str] = set()
        self._refused: UnsupportedUpstream | None = None  # raised, perhaps caught by the script
        self._records: list[ResumeRecord] = []
        self._recorded: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._inside = threading.local()
        folders = [root.resolve() for root in roots]
        rules = adapter.seam == "source"
        self._upstream = Upstream(adapter, folders, rules, force, self._rewritten)
        self._fingerprint = Fingerprint(adapter, self._upstream, in_source)
        self._audit_loss: AuditLoss | None = None
        self._audit_output: Callable[[Any], None] | None = None

    def __str__(self) -> str:
        return f"{self.adapter.name} ({self._fingerprint.found()})"

    def apply(self) -> None:
        """Wrap what is imported already; wrap the rest as it is imported. Twice is as once.

        Raises:
            ConfigError: ``gate="shielded"``.
            SeamNotFound: the distribution is not installed, and this is no checkout of it.
            UnsupportedUpstream: the fingerprint of a module that is imported does not match.
        """
        if self.topk.config.gate == "shielded":
            raise ConfigError(
                f"gate: found 'shielded' with the adapter {self.adapter.name}, whose calls are "
                "generator steps by themselves; leave it out, or name the critic: --critic "
                "module:Class"
            )
        if self._applied:
            return
        self._fingerprint.begin()
        self.log = PatchLog()
        self._wrapped_modules.clear()
        self._refused, self._applied = None, True
        if self.in_source:
            return
        self._fingerprint.differ += self._upstream.check()
        self._upstream.install()
        for module in dict.fromkeys(wrap.module for wrap in self.adapter.wraps):
            when_imported(module, self)
        for package in self._upstream.stubs.packages:
            when_imported(package, self)

    def undo(self) -> None:
        """Put every function back as it was, in reverse order; twice is fine."""
        wait_no_longer(self)
        self._applied = False
        left = self.log.undo()
        if left:
            warn(
                f"{', '.join(left)}: replaced by somebody else after top-k wrapped it, so it is "
                "left as it is; top-k's part in it is switched off.",
                stacklevel=2,
            )
        while self._records:
            self._records.pop().remove()
        self._recorded.clear()
        self._upstream.remove()

    def imported(self, module: types.ModuleType) -> None:
        """A module of the adapter's was imported: verify it, then wrap.

        Raises:
            UnsupportedUpstream: names or signatures differ; nothing is left wrapped then.
        """
        if module.__name__ in self._upstream.stubs.packages:
            self._upstream.stubs.hide()  # with its package all of an upstream's imports are done
        wraps = [wrap for wrap in self.adapter.wraps if wrap.module == module.__name__]
        if not wraps or module.__name__ in self._wrapped_modules:
            return
        if not self._fingerprint.belongs(module):
            return
        try:
            try:
                self._fingerprint.verify(module, wraps, self.force)
            except UnsupportedUpstream as error:
                self._refused = error
                raise
            for wrap in wraps:
                found = find(module, wrap.name)
                if wrap.wrapper is not None and found is not None:
                    self.wrap(*found, wrap.wrapper)
        except BaseException:
            self.undo()
            raise
        self._wrapped_modules.add(module.__name__)

    def _rewritten(self, path: Path, rules: tuple[Rule, ...]) -> None:
        """A file was imported or run with the edits of ``rules``."""
        patch = self.adapter.patch
        if patch is not None and any(rule in patch.topk for rule in rules):
            self._wrapped_modules.add(str(path))

    @property
    def notes(self) -> list[str]:
        """Said with the header: how what was found differs from what was tested."""
        return self._fingerprint.notes()

    @property
    def left_out(self) -> list[str]:
        """See :class:`Seam`."""
        return []

    def first_step(self) -> list[str]:
        """See :meth:`Seam.first_step`."""
        return []

    @contextmanager
    def audited(self, loss: AuditLoss, output: Callable[[Any], None]) -> Iterator[None]:
        """For `topk check`.

        Args:
            loss: called instead of the upstream's loss, as ``loss(original, scores)``.
            output: told what lines in the source return.
        """
        self._audit_loss, self._audit_output = loss, output
        try:
            yield
        finally:
            self._audit_loss = self._audit_output = None

    # --- for wrappers ---------------------------------------------------------------------------

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Put ``wrapper`` around the function ``name`` of ``owner``, a module or class."""
        self.log.wrap(owner, name, functools.partial(wrapper, self))

    def wrap_overrides(self, cls: type, name: str, wrapper: Wrapper) -> None:
        """Put ``wrapper`` around the method ``name`` wherever ``cls``'s MRO defines it."""
        for owner in cls.__mro__:
            if name in vars(owner) and not self.log.holds(owner, name):
                self.wrap(owner, name, wrapper)

    def gated_loss(self, loss: Callable[[Any], Any], scores: Any) -> Any:
        """``loss(scores)`` of a generator step, with top-k between the two.

        Of losses that call each other the outermost one is gated.
        """
        if getattr(self._inside, "a_loss", False):
            return loss(scores)
        self.called += 1
        self._inside.a_loss = True
        try:
            if self._audit_loss is not None:
                return self._audit_loss(loss, scores)
            return loss(self.topk(scores))
        finally:
            self._inside.a_loss = False

    def gated(self, output: Any, heads: Sequence[str | int] = ()) -> Any:
        """The critic's ``output`` in a generator step, gated; ``heads`` may name its scores."""
        self.called += 1
        return self._told(self.topk(output, heads))

    def _told(self, gated: Any) -> Any:
        if self._audit_output is not None:
            self._audit_output(gated)
        return gated

    def keep_record(self, critic: nn.Module) -> None:
        """Let the critic's checkpoints carry top-k's settings and votes; twice is fine."""
        if critic not in self._recorded:
            self._recorded.add(critic)
            self._records.append(ResumeRecord(critic, self.topk))

    def begin_at(self, epoch: int, steps: int) -> None:
        """Training begins, or goes on after ``steps`` generator steps, by upstream's own counter.

        Args:
            epoch: epochs that ended since upstream's first step.
            steps: generator steps since then.

        Raises:
            ConfigError: ``start_epoch`` says something else.
        """
        self._epochs.begin_at(epoch, steps, self._records)

    def reach_epoch(self, epoch: int, complete: bool = False) -> None:
        """Upstream's own counter says that ``epoch`` epochs have ended since its first step.

        Args:
            complete: the last batch of the present one was delivered.
        """
        self._epochs.reach(epoch, complete)

    # --- where nothing, or not all, was gated ----------------------------------------------------

    def broken(self) -> NoEffectError | None:
        """Whether top-k was pushed out in the middle of the run."""
        gone = self.log.verify()
        if not gone:
            return None
        return NoEffectError(
            f"adapter {self.adapter.name}: {', '.join(gone)} was replaced after top-k wrapped it, "
            "so the generator steps after that were not gated. Apply the other patch first"
        )

    def no_effect(self) -> UnsupportedUpstream | SeamNotFound | NoEffectError:
        """Why no generator step was gated, after optimizers stepped."""
        if self._refused is not None:  # and the script went on
            return self._refused
        name = self.adapter.name
        steps = f"{count(self.topk.ledger.optimizer_steps, 'optimizer step')} ran"
        strangers = self._fingerprint.describe_strangers()
        if strangers or not (self._wrapped_modules or self.in_source):
            modules = dict.fromkeys(wrap.module for wrap in self.adapter.wraps)
            return SeamNotFound(
                f"adapter {name}: {strangers or 'found no import of ' + ', '.join(modules)}, while "
                f"{steps}. Expected a script that trains with {self.adapter.upstream}; for another "
                "one name its critic: --critic module:Class"
            )
        broken = self.broken()
        if broken is not None:
            return broken
        how = "called, but no gradient of its scores came back" if self.called else "never called"
        return NoEffectError(
            f"adapter {name}: {steps} and its loss was {how}. Expected upstream's own generator "
            "step; for a step of your own name the critic: --critic module:Class"
        )


_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def scores_argument(name: str, position: int = 0) -> Wrapper:
    """A wrapper that gates one argument, the scores, of a generator's loss.

    Args:
        name: of that argument.
        position: of it where an override names it differently, from 0; ``self`` does not count.

    Raises:
        UnsupportedUpstream: when a loss is called that has no such argument.
    """

    def wrapper(
        seam: CallSeam, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
    ) -> Any:
        signature = inspect.signature(wrapped)
        plain = [p.name for p in signature.parameters.values() if p.kind not in _STARRED]
        if name not in plain and len(plain) <= position:
            raise UnsupportedUpstream(
                f"adapter {seam.adapter.name}: found {wrapped.__qualname__}{signature}, expected "
                f"an argument {name!r}, or one at position {position}, that takes the scores"
            )
        argument = name if name in plain else plain[position]
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return wrapped(*args, **kwargs)  # which says what is wrong
        if argument not in bound.arguments:
            return wrapped(*args, **kwargs)  # a default

        def loss(scores: Any) -> Any:
            bound.arguments[argument] = scores
            return wrapped(*bound.args, **bound.kwargs)

        return seam.gated_loss(loss, bound.arguments[argument])

    wrapper.argument = name  # type: ignore[attr-defined]  # see Wrap
    return wrapper
