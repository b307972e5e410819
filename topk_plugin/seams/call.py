"""The call and source seams: the functions of an adapter wrapped, its patch applied.

The *call* seam wraps functions that an adapter names, as they are imported; the *source* seam is
the same with calls that the adapter's patch puts into the source."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from topk_plugin.adapter import Adapter, Wrapper
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound, UnsupportedUpstream
from topk_plugin.hooks import Selection
from topk_plugin.loop.resume import ResumeRecord
from topk_plugin.monkeypatch import PatchLog
from topk_plugin.source.rules import Rule
from topk_plugin.topk import TopK
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.fingerprint import difference, find, is_of
from topk_plugin.upstream.imports import wait_no_longer, when_imported
from topk_plugin.upstream.stubs import lies_in


class CallSeam:
    """Wraps the functions of one adapter, and applies its patch, from ``apply()`` to ``undo()``.

    Args:
        adapter: what to wrap.
        topk: what the wrappers use.
        roots: folders of the launched checkout; a module from anywhere else is not the upstream
            that is meant, unless it belongs to the adapter's distribution.
        force: go on although the fingerprint does not match.
        patched: `topk patch` has put the calls into the files already, so nothing is applied.
    """

    def __init__(
        self,
        adapter: Adapter,
        topk: TopK,
        roots: Iterable[Path] = (),
        force: bool = False,
        patched: bool = False,
    ) -> None:
        self.adapter, self.topk, self.force, self.patched = adapter, topk, force, patched
        self.roots = [root.resolve() for root in roots]
        if topk.config.companions == "auto":
            topk.follows = adapter.companions == "follow"
        topk.assumed = {"high": 1.0, "low": -1.0, None: 0.0}[adapter.direction]
        self._from_source = adapter.seam == "source" or patched
        self.log = PatchLog()
        self.called = 0  # gated calls
        self.planned_epochs: float | None = None  # of this run, where the upstream says so
        self._origin = topk.config.start_epoch  # epochs before upstream's first step
        self._applied = False
        self._patched: set[str] = set()  # modules
        self._differ: list[str] = []  # from the fingerprint, where that is forced
        self._refused: UnsupportedUpstream | None = None  # raised, perhaps caught by the script
        self._strangers: dict[str, str] = {}  # modules of those names that lie elsewhere
        self._records: list[ResumeRecord] = []
        self._recorded: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._inside = threading.local()
        self._counting = False  # upstream's counter has been read
        gated = adapter.seam == "source"
        self._upstream = Upstream(adapter, self.roots, gated, force, self._rewritten)
        self._distribution: importlib.metadata.Distribution | None = None
        # called by topk check instead of the loss: (loss, scores) -> loss
        self.audit: Callable[[Callable[[Any], Any], Any], Any] | None = None
        # called by topk check with what lines in the source return
        self.audit_output: Callable[[Any], None] | None = None

    def __str__(self) -> str:
        return f"{self.adapter.name} ({self._found()})"

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
        self._locate()
        self.log = PatchLog()
        for seen in (self._patched, self._differ, self._strangers):
            seen.clear()
        self._refused, self._applied = None, True
        if not self.patched:
            self._differ += self._upstream.check()
        if self._from_source:
            _active.append(self)
            self.topk.observers.append(self._step_counted)
        if self.patched:
            return
        self._upstream.install()
        for module in dict.fromkeys(wrap.module for wrap in self.adapter.wraps):
            when_imported(module, self)
        for package in self._upstream.stubs.packages:
            when_imported(package, self)

    def undo(self) -> None:
        """Put every function back as it was, in reverse order; twice is fine."""
        wait_no_longer(self)
        self._applied = False
        if self in _active:
            _active.remove(self)
        if self._step_counted in self.topk.observers:
            self.topk.observers.remove(self._step_counted)
        left = self.log.undo()
        if left:
            warnings.warn(
                f"{', '.join(left)}: replaced by somebody else after top-k wrapped it, so it is "
                "left as it is; top-k's part in it is switched off.",
                stacklevel=2,
            )
        while self._records:
            self._records.pop().remove()
        self._recorded.clear()
        self._upstream.remove()

    def _locate(self) -> None:
        name = self.adapter.distribution
        if name is None:
            return
        try:
            self._distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            package = self.adapter.wraps[0].module.partition(".")[0]
            if any((root / package).is_dir() for root in self.roots):
                return  # a checkout
            raise SeamNotFound(
                f"adapter {self.adapter.name}: {name} is not installed here, and there is no "
                f"{package} in {' or '.join(map(str, self.roots)) or 'the checkout'}. Install it: "
                f"{self.adapter.install or f'pip install {name}'}"
            ) from None

    def imported(self, module: types.ModuleType) -> None:
        """A module of the adapter's was imported: verify it, then wrap.

        Raises:
            UnsupportedUpstream: names or signatures differ; nothing is left wrapped then.
        """
        if module.__name__ in self._upstream.stubs.packages:
            self._upstream.stubs.hide()  # with its package all of an upstream's imports are done
        wraps = [wrap for wrap in self.adapter.wraps if wrap.module == module.__name__]
        if not wraps or module.__name__ in self._patched:
            return
        if not self._belongs(module):
            self._strangers[module.__name__] = str(getattr(module, "__file__", "no file"))
            return
        try:
            differ = [text for wrap in wraps if (text := difference(module, wrap))]
            if differ and not self.force:
                self._refused = UnsupportedUpstream(self._unsupported(module, differ))
                raise self._refused
            for wrap in wraps:
                found = find(module, wrap.name)
                if wrap.wrapper is not None and found is not None:
                    self.wrap(*found, wrap.wrapper)
        except BaseException:
            self.undo()
            raise
        self._patched.add(module.__name__)
        self._differ += differ

    def _belongs(self, module: types.ModuleType) -> bool:
        """Whether a module is the distribution's, or else of the launched checkout."""
        file = getattr(module, "__file__", None)
        if file is None:
            return False
        path = Path(file).resolve()
        if self._distribution is not None and is_of(self._distribution, path):
            return True
        launched = lies_in(file, self.roots)
        if launched:
            self._distribution = None  # the checkout goes before what is installed
        return launched

    def _release(self) -> str | None:
        if self._distribution is not None:
            return self._distribution.version
        if self.adapter.patch is not None:
            return self._upstream.release()
        package = sys.modules.get(self.adapter.wraps[0].module.partition(".")[0])
        return getattr(package, "__version__", None)

    def _found(self) -> str:
        what = self.adapter.upstream if self._distribution is None else self.adapter.distribution
        if self.patched and self.adapter.patch is not None:
            return f"{what} {self.adapter.patch.commit}, patched"
        return f"{what} {self._release() or 'of unknown version'}"

    @property
    def notes(self) -> list[str]:
        """Said with the header: how what was found differs from what was tested."""
        if self.patched or (self._release() in self.adapter.versions and not self._differ):
            return []
        ignored = f"ignored (--force): {'; '.join(self._differ)}"
        return [
            f"note: {self._found()} is not what the adapter {self.adapter.name} was tested with "
            f"({', '.join(self.adapter.versions)}); "
            + (ignored if self._differ else "what it relies on matches")
        ]

    def _unsupported(self, module: types.ModuleType, differ: list[str]) -> str:
        tested = ", ".join(self.adapter.versions)
        install = (
            f" Install a tested version: {self.adapter.install}." if self.adapter.install else ""
        )
        return (
            f"adapter {self.adapter.name}: {self._found()} is not what it was written for "
            f"({tested}): in {module.__file__} {'; '.join(differ)}.{install} Or name the critic, "
            "which needs no adapter: --critic module:Class. --force goes on all the same."
        )

    # --- for wrappers ---------------------------------------------------------------------------

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Put a wrapper around a function of a module or class."""
        self.log.wrap(owner, name, functools.partial(wrapper, self))

    def wrap_overrides(self, cls: type, name: str, wrapper: Wrapper) -> None:
        """Put a wrapper around a method wherever the classes of ``cls``'s MRO define it."""
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
            if self.audit is not None:
                return self.audit(loss, scores)
            return loss(self.topk(scores))
        finally:
            self._inside.a_loss = False

    def _rewritten(self, path: Path, rules: tuple[Rule, ...]) -> None:
        """A file was imported or run with the edits of ``rules``."""
        if any(rule in self.adapter.patch.topk for rule in rules):  # type: ignore[union-attr]
            self._patched.add(str(path))

    def gated(self, output: Any) -> Any:
        """What the critic returned in a generator step, with top-k on its way back."""
        self.called += 1
        gated = self.topk(output)
        if self.audit_output is not None:
            self.audit_output(gated)
        return gated

    def followed(self, output: Any) -> Any:
        """Another output of the critic for the samples of the latest gated one."""
        gated = self.topk.follow(output)
        if self.audit_output is not None:
            self.audit_output(gated)
        return gated

    def _step_counted(self, step: Selection) -> None:
        # two must not end the same epoch: lines in the source go before the DataLoader
        self.topk.counted |= self._tells_epochs()
        self.topk.observers.remove(self._step_counted)

    def _tells_epochs(self) -> bool:
        """Whether a file that was imported or run says when an epoch ends."""
        patch, base = self.adapter.patch, self._upstream.base
        if patch is None or base is None:
            return False
        files = {(base / name).resolve() for name in patch.epoch_files}
        names = tuple(file.name for file in files)
        loaded = [getattr(module, "__file__", None) or "" for module in [*sys.modules.values()]]
        return any(Path(file).resolve() in files for file in loaded if file.endswith(names))

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
        config, topk = self.topk.config, self.topk
        if config.every != "epoch":
            epoch = steps // config.every
        if topk.pass_complete:
            topk.end_epoch()  # the last one of an earlier training in this process
        restored = topk.steps == topk.first_step and any(r.found for r in self._records)
        for record in self._records:  # what they loaded is accounted for, with a record or without
            record.loaded = record.found = False
        if not steps:
            self._origin = config.start_epoch
        elif restored:
            # the checkpoint's record knows of steps that were skipped, and of start_epoch
            self._origin = topk.epoch - epoch
            return
        elif config.start_epoch in (0, epoch):
            self._origin = 0
        else:
            raise ConfigError(
                f"start_epoch: found {config.start_epoch}, but {self.adapter.upstream} goes on "
                f"from its generator step {steps}, after {epoch} epochs; leave it out"
            )
        topk.begin_at(self._origin + epoch, steps)

    def reach_epoch(self, epoch: int, complete: bool = False) -> None:
        """Upstream's own counter says that ``epoch`` epochs have ended since its first step.

        Args:
            complete: the last batch of the present one was delivered.
        """
        topk = self.topk
        topk.counted = True
        if topk.config.every != "epoch":
            return
        while topk.epoch < self._origin + epoch:
            topk.end_epoch()
        topk.pass_complete = complete

    def end_epoch(self) -> None:
        """A line in upstream's source says that an epoch ended."""
        if self.topk.config.every == "epoch":
            self.topk.end_epoch()

    def count(self, epoch: int, step: int) -> None:
        """A line in upstream's source says how many epochs had ended, and generator steps done.

        Args:
            epoch: since upstream's first step.
            step: since then, resumed ones included.
        """
        if not self._counting:
            self._counting = True
            self.begin_at(epoch, step)
        self.reach_epoch(epoch)

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
        steps = f"{self.topk.ledger.optimizer_steps} optimizer steps ran"
        patch = self.adapter.patch
        if self._from_source and patch is not None and not (self._patched or self.patched):
            return SeamNotFound(
                f"adapter {name}: none of {', '.join(patch.files)} in {self._upstream.base} was "
                f"imported or run, while {steps}. A process that a script starts runs the script "
                "from disk: put top-k there with `topk patch CHECKOUT --write` and run it with "
                "--topk. For a script of your own name its critic: --critic module:Class"
            )
        if self._strangers or not (self._patched or self.patched):
            what = "; ".join(
                f"{module} came from {file}, which is not of the launched checkout"
                + (f" or the installed {self.adapter.distribution}" if self._distribution else "")
                for module, file in self._strangers.items()
            )
            modules = dict.fromkeys(wrap.module for wrap in self.adapter.wraps)
            return SeamNotFound(
                f"adapter {name}: {what or 'found no import of ' + ', '.join(modules)}, while "
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


_active: list[CallSeam] = []  # whose calls are in the source


def active_seam() -> CallSeam | None:
    """The seam that calls in a script's source are of, if there is one."""
    return _active[-1] if _active else None


_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def scores_argument(name: str, position: int = 0) -> Wrapper:
    """A wrapper that gates one argument, the scores, of a generator's loss.

    Args:
        name: of that argument.
        position: of it where an override names it differently; ``self`` does not count.
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

    return wrapper
