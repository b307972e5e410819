"""The critic seam: every instance of a class, given by name, is attached as it is built.

Instances are recognised when ``nn.Module.__init__`` runs, since import hooks never see a class of
``__main__``. A name may be bound later than that, as where a module builds its critic and another
imports the class from it: then they are attached before any weights are loaded or trained."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

from torch import nn

from topk_plugin.core.arrival import HOW_TO_MARK
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound
from topk_plugin.kinds import HEADS
from topk_plugin.loop.attach import Attachment
from topk_plugin.loop.intercept import intercept, is_intercepted
from topk_plugin.monkeypatch import PatchLog, stands_in
from topk_plugin.seams.misnamed import Built, listed, mistake, pending
from topk_plugin.seams.names import CriticPath, title
from topk_plugin.streams import count
from topk_plugin.topk import TopK


class NamedCritic:
    """One of the critics on the command line: a class, perhaps with heads of its own."""

    def __init__(self, path: CriticPath, heads: tuple[str | int, ...] = ()) -> None:
        self.path, self.heads = path, heads
        self.built = 0
        self.attachments: list[Attachment] = []

    @classmethod
    def parse(cls, text: str) -> NamedCritic:
        """``module:Class``, or ``module:Class=HEADS``; raises ConfigError for anything else."""
        name, equals, heads = text.partition("=")
        path = CriticPath.parse(name)
        try:
            named = HEADS.check(HEADS.parse(heads))
        except ValueError:
            named = ()
        if equals and not named:
            raise ConfigError(
                f"--critic: found {text!r}, expected after = {HEADS.expected}, as --heads takes, "
                f"such as {path}=0,1; leave out = for the setting --heads"
            )
        return cls(path, named)

    def __str__(self) -> str:
        return f"{self.path}={','.join(map(str, self.heads))}" if self.heads else str(self.path)

    @property
    def took_part(self) -> bool:
        """Whether its scores were among those of a generator step."""
        return any(attachment.took_part for attachment in self.attachments)


def parse_critics(texts: Iterable[str]) -> list[NamedCritic]:
    """What was given with --critic.

    Raises:
        ConfigError: one is malformed, or named twice.
    """
    critics = [NamedCritic.parse(text) for text in texts]
    paths = [critic.path for critic in critics]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"--critic: found {twice} twice, expected each critic once, with all of its heads: "
            f"--critic {twice}=0,1"
        )
    return critics


class Meant(NamedTuple):
    """As what the instances of a class are attached."""

    critic: NamedCritic
    attribute: str | None  # the submodule that scores


class CriticSeam:
    """Attaches every instance of some classes as it is built, from ``apply()`` to ``undo()``."""

    def __init__(self, critics: Sequence[NamedCritic], topk: TopK) -> None:
        self.critics, self.topk = critics, topk
        self.adapter, self.planned_epochs = None, None
        self.notes: list[str] = []  # said with the header, or with the verdict
        self._of: weakref.WeakKeyDictionary[nn.Module, NamedCritic] = weakref.WeakKeyDictionary()
        self._built = Built()
        self._meant: weakref.WeakKeyDictionary[type, list[Meant]] = weakref.WeakKeyDictionary()
        self._bound: list[type | None] = []  # what the names stood for when these were found
        # instances that no name meant, until an optimizer steps
        self._strangers: list[weakref.ref[nn.Module]] | None = []
        self._refused: SeamNotFound | None = None  # raised, perhaps caught by the script
        self.log = PatchLog()
        self._undo = ExitStack()  # attachments

    def __str__(self) -> str:
        names = ", ".join(map(str, self.critics))
        return f"critic{'s' if len(self.critics) > 1 else ''} {names}"

    def apply(self) -> None:
        """Begin to recognise instances."""
        init, parallel = nn.Module.__init__, nn.DataParallel.__init__
        load = nn.Module.load_state_dict
        self.log, seam = PatchLog(), self

        @stands_in(init)
        def recognise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if seam.log.active:  # torch.compile keeps a reference
                seam._recognise(self)

        @stands_in(parallel)
        def wrap(self: nn.DataParallel[Any], *args: Any, **kwargs: Any) -> None:
            parallel(self, *args, **kwargs)
            if seam.log.active:
                seam._parallel(self)

        @stands_in(load)
        def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if seam.log.active:
                seam._look_again()  # the record in a checkpoint is for critics that are attached
            return load(self, *args, **kwargs)

        # plain functions: with wrapt's, every module in the process would be built more slowly
        self.log.replace(nn.Module, "__init__", recognise)
        self.log.replace(nn.DataParallel, "__init__", wrap)
        self.log.replace(nn.Module, "load_state_dict", load_state_dict)

    def undo(self) -> None:
        """Put every class back as it was, in reverse order; twice is fine."""
        self._undo.close()
        self.log.undo()

    def audited(self, loss: Any, output: Any) -> AbstractContextManager[None]:
        """For `topk check`: neither the loss nor the source is seen here."""
        return nullcontext()

    # --- instances ------------------------------------------------------------------------------

    def _recognise(self, module: nn.Module) -> None:
        """A module is being built."""
        self._look_again()
        meant = self._meant_by(type(module))
        if meant:
            self._attach(module, meant)
        elif self._strangers is not None:
            self._strangers.append(weakref.ref(module))

    def _look_again(self) -> None:
        """Where a name was bound since: what was built before that may be meant by it now."""
        bound = [cls for critic in self.critics for cls in critic.path.stands_for()]
        if _same(bound, self._bound):
            return
        self._bound = bound
        self._meant.clear()
        alive = [module for ref in self._strangers or () if (module := ref()) is not None]
        for module in alive:
            self._attach(module, self._meant_by(type(module)))
        for module in alive:
            if isinstance(module, nn.DataParallel) and "module" in module._modules:
                self._parallel(module)

    def _meant_by(self, cls: type) -> list[Meant]:
        """Of several classes that ``cls`` derives from, the nearest is meant.

        Raises:
            ConfigError: two names mean the same.
        """
        known = self._meant.get(cls)
        if known is not None:
            return known
        self._built.add(cls)
        found = [(critic, critic.path.match(cls)) for critic in self.critics]
        matches = [(critic, match) for critic, match in found if match is not None]
        least = min((match.distance for _, match in matches), default=0)
        meant = [Meant(critic, m.attribute) for critic, m in matches if m.distance == least]
        attributes = {attribute for _, attribute in meant}
        if len(attributes) < len(meant) or (None in attributes and len(meant) > 1):
            names = " and ".join(str(critic.path) for critic, _ in meant)
            raise ConfigError(
                f"--critic: {names} mean the same critic, {title(cls)}; name it once, with all of "
                f"its heads: --critic {meant[0].critic.path}=0,1"
            )
        self._meant[cls] = meant
        return meant

    def _attach(self, module: nn.Module, meant: Sequence[Meant]) -> None:
        if not meant or is_intercepted(module):
            return
        self._of[module] = meant[0].critic
        for critic, _ in meant:
            critic.built += 1
        critic, attribute = meant[0]
        if attribute is None:
            self.gate(critic, module, module)
        else:
            # the attributes do not exist yet: attach them when their owner is first called
            self._undo.callback(intercept(module, _Owner(self, module, meant), compiles=False))

    def gate(self, critic: NamedCritic, module: nn.Module, owner: nn.Module) -> None:
        """Attach ``module``, which scores; ``owner`` owns the critic's parameters."""
        attachment = Attachment(
            [module], owner, self.topk, heads=critic.heads, tell=self.notes.append
        )
        critic.attachments.append(attachment)
        self._undo.callback(attachment.remove)

    def _parallel(self, module: nn.DataParallel[Any]) -> None:
        """A DataParallel was built."""
        if len(module.device_ids) < 2 or is_intercepted(module):
            return  # it calls its very module
        if module.module in self._of:  # its replicas see a shard each
            self.gate(self._of[module.module], module, module)
            return
        inside = next((self._of[inner] for inner in module.modules() if inner in self._of), None)
        if inside is not None:
            raise SeamNotFound(
                f"--critic {inside}: it runs inside a DataParallel of a "
                f"{type(module.module).__qualname__} over {len(module.device_ids)} devices, "
                "where every replica sees a shard of the batch. Use one device, or one process "
                "a device (DistributedDataParallel)."
            )

    # --- where nothing, or not all, was gated ----------------------------------------------------

    def first_step(self) -> list[str]:
        """See :meth:`Seam.first_step`.

        Raises:
            SeamNotFound: a name that can never match, or one that was bound too late.
        """
        before = [critic.built for critic in self.critics]
        self._look_again()
        self._strangers = None
        absent = [critic for critic in self.critics if not critic.built]
        wrong = {critic: mistake(critic.path, self._built) for critic in absent}
        for critic, built in zip(self.critics, before, strict=True):
            if critic.built > built and self.topk.fraction_at(self.topk.epoch) < 1:
                wrong[critic] = self._late(critic)  # the step may have been the generator's
        texts = [f"--critic {critic.path}: {why}" for critic, why in wrong.items() if why]
        if texts:
            self._refused = SeamNotFound(" ".join(texts))
            raise self._refused
        return [f"critic {c.path} is not built yet{pending(c.path, self._built)}" for c in absent]

    @property
    def left_out(self) -> list[str]:
        """See :class:`Seam`: of several critics, those that took no part."""
        if not any(critic.took_part for critic in self.critics):  # steps that were told by hand
            return []
        return [
            f"critic {critic.path}: no generator step went through it"
            if critic.built
            else self._unbuilt(critic)
            for critic in self.critics
            if not critic.took_part
        ]

    def _unbuilt(self, critic: NamedCritic) -> str:
        """Why there is no instance of it, in sentences."""
        path, built = critic.path, self._built
        why = self._late(critic) or mistake(path, built)
        if why is not None:
            return f"critic {path}: {why}"
        return f"critic {path} was never built{pending(path, built)}"

    def _late(self, critic: NamedCritic) -> str | None:
        """Of a class that got its name too late: how else it is called."""
        names = self._built.that(lambda cls: any(critic is m.critic for m in self._meant_by(cls)))
        if not names:
            return None
        return (
            f"it was built, and an optimizer stepped, before {critic.path.module} had that name: "
            f"pass --critic {' or '.join(names)}."
        )

    def broken(self) -> SeamNotFound | None:
        """What was raised at the first optimizer step, if the script went on."""
        return self._refused

    def no_effect(self) -> SeamNotFound | NoEffectError:
        """Why no generator step was gated, after optimizers stepped."""
        if self._refused is not None:  # and the script went on
            return self._refused
        ledger, built = self.topk.ledger, [critic for critic in self.critics if critic.built]
        steps = f"{count(ledger.optimizer_steps, 'optimizer step')} ran"
        if not built:
            each = " ".join(f"--{self._unbuilt(critic)}" for critic in self.critics)
            return SeamNotFound(f"{each} {steps}.")
        names = " and ".join(str(critic.path) for critic in built)
        named = {*self._built.that(lambda cls: bool(self._meant_by(cls)))}
        waiting = len(ledger.pending or ledger.aside)
        if waiting:
            return NoEffectError(
                f"{count(waiting, 'backward pass')} went through {names}, {steps}, and none of "
                "them was of an optimizer that owns a generator parameter and none of the critic's"
                f". {HOW_TO_MARK}"
            )
        return NoEffectError(
            f"{steps} and no generator step went through {names}: no gradient of its score reached "
            "an nn.Parameter outside it. Expected loss = f(critic(generator(z))), its backward, "
            "and a step of the generator's optimizer. Is this the critic of the generator's loss? "
            "(Copies of a critic and critics that were unpickled are not gated.)"
            + listed({*self._built} - named, "Other modules that were built")
        )


class _Owner:
    """A critic that averages inside: its first call attaches the submodules that score."""

    def __init__(self, seam: CriticSeam, owner: nn.Module, meant: Sequence[Meant]) -> None:
        self.seam, self.owner, self.meant = seam, weakref.ref(owner), meant

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        owner = self.owner()
        assert owner is not None  # it is being called
        for critic, attribute in self.meant:
            scorer = getattr(owner, str(attribute), None)
            if not isinstance(scorer, nn.Module):
                names = ", ".join(name for name, _ in owner.named_children())
                raise SeamNotFound(
                    f"--critic {critic.path}: {type(owner).__qualname__} has no submodule "
                    f"{attribute!r}; expected one of: {names or '(it has none)'}."
                )
            if not is_intercepted(scorer):
                self.seam.gate(critic, scorer, owner)
        return original(*args, **kwargs)


def _same(now: Sequence[type | None], before: Sequence[type | None]) -> bool:
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
