"""The ways into a loop that is not ours, and the log that undoes them.

The *call* seam wraps functions that an adapter names, as they are imported; the *source* seam is
the same with calls that the adapter's patch puts into the source. The *critic* seam
gates every instance of a critic class, given by name, as it is built: it recognises them when
``nn.Module.__init__`` runs, by the names in their class's MRO, since import hooks never see a
class of ``__main__``.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from topk_plugin.adapter import Adapter, Wrapper
from topk_plugin.core.ledger import HOW_TO_MARK
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound, UnsupportedUpstream
from topk_plugin.hooks import Selection
from topk_plugin.loop.attach import Attachment
from topk_plugin.loop.intercept import intercept, is_intercepted
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


@dataclass(frozen=True)
class CriticPath:
    """``module:Class``, or ``module:Class.attribute`` for critics that average inside."""

    module: str
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> CriticPath:
        """Raises ConfigError for anything else."""
        module, _, path = text.partition(":")
        names = tuple(path.split("."))
        if not all(part.isidentifier() for part in module.split(".")) or not all(names):
            raise ConfigError(
                f"--critic: found {text!r}, expected module:Class or module:Class.attribute, such "
                "as model:Discriminator; __main__:Discriminator for a class of the script itself"
            )
        return cls(module, names)

    def __str__(self) -> str:
        return f"{self.module}:{'.'.join(self.names)}"

    def find(self, cls: type) -> tuple[str, ...] | None:
        """() if ``cls`` is or derives from that class, (attribute,) if its attribute is meant."""
        # spawned children know the script as __mp_main__
        modules = (self.module, "__mp_main__") if self.module == "__main__" else (self.module,)
        names = {c.__qualname__ for c in cls.__mro__ if c.__module__ in modules}
        if ".".join(self.names) in names:
            return ()
        if isinstance(getattr(cls, self.names[-1], None), type):  # a class in that class
            return None
        return self.names[-1:] if ".".join(self.names[:-1]) in names else None


class CriticSeam:
    """Attaches every instance of a class as it is built, from ``apply()`` to ``undo()``."""

    def __init__(self, path: CriticPath, topk: TopK) -> None:
        self.path, self.topk = path, topk
        self.notes: list[str] = []  # said with the header
        self.built = 0
        self.seen: set[str] = set()  # "module:Class" of every module built, for error messages
        self._found: weakref.WeakKeyDictionary[type, Any] = weakref.WeakKeyDictionary()
        self.log = PatchLog()
        self._undo = ExitStack()  # attachments

    def __str__(self) -> str:
        return f"critic {self.path}"

    def apply(self) -> None:
        """Begin to recognise instances."""
        init, parallel = nn.Module.__init__, nn.DataParallel.__init__
        self.log = PatchLog()

        @functools.wraps(init)
        def recognise(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            init(module, *args, **kwargs)
            if not self.log.active:  # torch.compile keeps a reference
                return
            cls = type(module)
            if cls not in self._found:
                self._found[cls] = self.path.find(cls)
                self.seen.add(f"{cls.__module__}:{cls.__qualname__}")
            found = self._found[cls]
            if found is not None and not is_intercepted(module):
                self.built += 1
                self._attach(module, *found)

        @functools.wraps(parallel)
        def wrap(module: nn.DataParallel[Any], *args: Any, **kwargs: Any) -> None:
            parallel(module, *args, **kwargs)
            if not self.log.active:
                return
            if is_intercepted(module.module):  # its replicas see a shard each
                self.gate(module, module)
            elif len(module.device_ids) > 1 and any(map(is_intercepted, module.modules())):
                raise SeamNotFound(
                    f"--critic {self.path}: it runs inside a DataParallel of a "
                    f"{type(module.module).__qualname__} over {len(module.device_ids)} devices, "
                    "where every replica sees a shard of the batch. Use one device, or one process "
                    "a device (DistributedDataParallel)."
                )

        # plain functions: with wrapt's, every module in the process would be built more slowly
        self.log.replace(nn.Module, "__init__", recognise)
        self.log.replace(nn.DataParallel, "__init__", wrap)

    def undo(self) -> None:
        """Put every class back as it was, in reverse order; twice is fine."""
        self._undo.close()
        self.log.undo()

    def broken(self) -> NoEffectError | None:
        """Whether top-k was pushed out: never, torch.compile's own wrapper around ours aside."""
        return None

    def no_effect(self) -> SeamNotFound | NoEffectError:
        """Why no generator step was gated, after optimizers stepped."""
        path, ledger = self.path, self.topk.ledger
        steps = f"{ledger.optimizer_steps} optimizer steps ran"
        if not self.built:
            built = sorted(
                name for name in self.seen if not name.startswith(("torch.", "torchvision."))
            )
            near = difflib.get_close_matches(str(path), built, n=1, cutoff=0.5)
            module = sys.modules.get(path.module)
            lacks = module is not None and not hasattr(module, path.names[0])
            return SeamNotFound(
                f"--critic {path}: "
                + (f"module {path.module} has no such class" if lacks else "it was never built")
                + f", while {steps}. "
                + (f"Did you mean {near[0]}? " if near else "")
                + f"Modules that were built: {', '.join(built) or 'only those of torch'}."
            )
        waiting = len(ledger.pending or ledger.aside)
        if waiting:
            return NoEffectError(
                f"{waiting} backward passes went through {path}, {steps}, and none of them was of "
                "an optimizer that owns a generator parameter and none of the critic's. "
                + HOW_TO_MARK
            )
        return NoEffectError(
            f"{steps} and no generator step went through {path}: no gradient of its score reached "
            "an nn.Parameter outside it. Expected loss = f(critic(generator(z))), its backward, "
            "and a step of the generator's optimizer. Is this the critic of the generator's loss? "
            "(Copies of a critic and critics that were unpickled are not gated.)"
        )

    def _attach(self, module: nn.Module, attribute: str | None = None) -> None:
        if attribute is None:
            self.gate(module, module)
        else:
            # the attribute does not exist yet: attach it when its owner is first called
            self._undo.callback(intercept(module, _Owner(self, module, attribute)))

    def gate(self, module: nn.Module, critic: nn.Module) -> None:
        """Attach ``module``, which scores; ``critic`` owns the critic's parameters."""
        self._undo.callback(Attachment([module], critic, self.topk).remove)


class _Owner:
    """A critic that averages inside: its first call attaches the submodule that scores."""

    def __init__(self, seam: CriticSeam, owner: nn.Module, attribute: str) -> None:
        self.seam, self.owner, self.attribute = seam, weakref.ref(owner), attribute

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        owner = self.owner()
        assert owner is not None  # it is being called
        scorer = getattr(owner, self.attribute, None)
        if not isinstance(scorer, nn.Module):
            names = ", ".join(name for name, _ in owner.named_children())
            raise SeamNotFound(
                f"--critic {self.seam.path}: {type(owner).__qualname__} has no submodule "
                f"{self.attribute!r}; expected one of: {names or '(it has none)'}."
            )
        if not is_intercepted(scorer):
            self.seam.gate(scorer, owner)
        return original(*args, **kwargs)
