"""The critic seam: gate every instance of a critic class, given by name, as it is built.

Instances are recognised when ``nn.Module.__init__`` runs, by the names in their class's MRO:
import hooks never see a class of ``__main__``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from topk_plugin.attach import Attachment, intercept, is_intercepted
from topk_plugin.errors import ConfigError, SeamNotFound
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
        self.built = 0
        self.seen: set[str] = set()  # "module:Class" of every module built, for error messages
        self._found: weakref.WeakKeyDictionary[type, Any] = weakref.WeakKeyDictionary()
        self._undo: list[Callable[[], Any]] = []

    def __str__(self) -> str:
        return f"critic {self.path}"

    def apply(self) -> None:
        """Begin to recognise instances."""
        init, parallel = nn.Module.__init__, nn.DataParallel.__init__
        self._undo.append(lambda: setattr(nn.Module, "__init__", init))
        self._undo.append(lambda: setattr(nn.DataParallel, "__init__", parallel))

        @functools.wraps(init)
        def recognise(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            init(module, *args, **kwargs)
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
            if is_intercepted(module.module):  # its replicas see a shard each
                self.gate(module, module)
            elif len(module.device_ids) > 1 and any(map(is_intercepted, module.modules())):
                raise SeamNotFound(
                    f"--critic {self.path}: it runs inside a DataParallel of a "
                    f"{type(module.module).__qualname__} over {len(module.device_ids)} devices, "
                    "where every replica sees a shard of the batch. Use one device, or one process "
                    "a device (DistributedDataParallel)."
                )

        nn.Module.__init__ = recognise  # type: ignore[method-assign, assignment]
        nn.DataParallel.__init__ = wrap  # type: ignore[method-assign, assignment]

    def undo(self) -> None:
        """Put every class back as it was, in reverse order."""
        while self._undo:
            self._undo.pop()()

    def _attach(self, module: nn.Module, attribute: str | None = None) -> None:
        if attribute is None:
            self.gate(module, module)
        else:
            # the attribute does not exist yet: attach it when its owner is first called
            self._undo.append(intercept(module, _Owner(self, module, attribute)))

    def gate(self, module: nn.Module, critic: nn.Module) -> None:
        """Attach ``module``, which scores; ``critic`` owns the critic's parameters."""
        self._undo.append(Attachment([module], critic, self.topk).remove)


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
