"""The critic seam: every instance of a class, given by name, is attached as it is built.

Instances are recognised when ``nn.Module.__init__`` runs, by the names in their class's MRO, since
import hooks never see a class of ``__main__``."""

from __future__ import annotations

import difflib
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from topk_plugin.core.ledger import HOW_TO_MARK
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound
from topk_plugin.loop.attach import Attachment
from topk_plugin.loop.intercept import intercept, is_intercepted
from topk_plugin.monkeypatch import PatchLog, stands_in
from topk_plugin.topk import TopK


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
        self.adapter, self.planned_epochs = None, None
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
        self.log, seam = PatchLog(), self

        @stands_in(init)
        def recognise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if not seam.log.active:  # torch.compile keeps a reference
                return
            cls = type(self)
            if cls not in seam._found:
                seam._found[cls] = seam.path.find(cls)
                seam.seen.add(f"{cls.__module__}:{cls.__qualname__}")
            found = seam._found[cls]
            if found is not None and not is_intercepted(self):
                seam.built += 1
                seam._attach(self, *found)

        @stands_in(parallel)
        def wrap(self: nn.DataParallel[Any], *args: Any, **kwargs: Any) -> None:
            parallel(self, *args, **kwargs)
            if not seam.log.active:
                return
            if is_intercepted(self.module):  # its replicas see a shard each
                seam.gate(self, self)
            elif len(self.device_ids) > 1 and any(map(is_intercepted, self.modules())):
                raise SeamNotFound(
                    f"--critic {seam.path}: it runs inside a DataParallel of a "
                    f"{type(self.module).__qualname__} over {len(self.device_ids)} devices, "
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

    def audited(self, loss: Any, output: Any) -> AbstractContextManager[None]:
        """For `topk check`: neither the loss nor the source is seen here."""
        return nullcontext()

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
            owner = _Owner(self, module, attribute)
            self._undo.callback(intercept(module, owner, compiles=False))

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
