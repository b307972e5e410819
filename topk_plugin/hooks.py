"""Every hook, and the manager of the plugins that implement them.

A plugin is a module or an object whose functions are marked with ``hookimpl``; one that is
installed under the entry-point group ``topk_plugin`` is loaded by itself::

    from topk_plugin import hookimpl

    class HalfAtRandom:
        @hookimpl
        def topk_select(self, scores, k):
            return torch.rand_like(scores).argsort().argsort() < k

    TopK(gamma=0.99, hooks=[HalfAtRandom()])

An implementation takes only the arguments it needs. Of the *first result* hooks the plugins are
asked in turn, the last registered first, until one returns something else than None; the others
call every plugin. Bundled plugins are registered before installed ones, and objects last. Two
environment variables help: ``TOPK_TRACE_PLUGINS=1`` prints every call,
``TOPK_DISABLE_PLUGINS=name,name`` leaves plugins out.

pluggy registers and orders the implementations. They are called by plain functions that are made
when a TopK is built: pluggy's own call cannot be compiled into a graph.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import pluggy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from topk_plugin.adapter import Adapter
from topk_plugin.config import TopKConfig
from topk_plugin.core.choice import Select
from topk_plugin.core.ranking import describe, kept_rows
from topk_plugin.core.schedule import KSchedule
from topk_plugin.errors import ConfigError, HookError, unknown_name

GROUP = "topk_plugin"
"""Entry-point group under which a distribution offers its plugins."""

TRACE, DISABLE = "TOPK_TRACE_PLUGINS", "TOPK_DISABLE_PLUGINS"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Progress(NamedTuple):
    """How far training is."""

    epoch: int  # epochs ended, t >= 0
    steps: int  # generator steps counted


class Call(NamedTuple):
    """One call of the critic in a generator step, on the scores' device."""

    scores: Tensor  # (B,)
    kept: Tensor  # (B,) bool


@dataclass(frozen=True)
class Selection:
    """What observers are told when a generator step was counted; reading a tensor synchronises."""

    step: int  # generator steps so far, this one included
    epoch: int  # ended epochs while it ran
    batch: int  # rows, over all critic calls of the step; 0 for topk(scores): see tally[ROWS]
    tally: Tensor  # (TALLY_SIZE,) float64, see topk_plugin.core.choice
    calls: tuple[Call, ...]  # none where the step was compiled or replayed


class Hooks:
    """The specifications. Nothing here may change a tensor in place.

    Tensors are detached, but for those of ``topk_scores``.
    """

    @hookspec
    def topk_adapters(self) -> Sequence[Adapter]:  # type: ignore[empty-body]
        """Adapters for third-party repositories, by whose names `topk run --adapter` finds them."""

    @hookspec(firstresult=True)
    def topk_scores(self, output: Any) -> Tensor | Sequence[Tensor] | None:
        """The scores in a critic's output: a floating tensor of it with B rows, or several.

        Several share one ranking, by their average. Called at each gated call of the critic,
        before the loss. Where every plugin returns None the rule of
        :func:`topk_plugin.core.ranking.score_heads` holds.

        The scores are replaced by gated ones, so they have to be the output's own tensors, and
        the output a tensor, tuple, list, dict, or of a class that is registered with
        ``torch.utils._pytree``.
        """

    @hookspec(firstresult=True)
    def topk_fraction(self, progress: Progress, config: TopKConfig) -> float | None:
        """Fraction of a batch that is kept, in (0, 1].

        Called on the host, when a TopK is built or loaded and when an epoch ends. Built in:
        ``max(gamma**epoch, nu)`` (paper, section 3.2).
        """

    @hookspec(firstresult=True)
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor | None:
        """Which rows of a batch the generator learns from: a mask (B,) of bool.

        Called in the backward of each generator step, so it must not wait for the device: no
        ``.item()``, no branch on a tensor, no shape that depends on k. Kept rows weigh B over
        their number (``reduction="mean"``). Built in: the k highest (paper, section 3.3);
        at k = B every row has to be kept.

        Args:
            scores: (B,), turned so that higher is more realistic; NaN possible.
            k: 0-d float64 on the same device, a whole number in 1 ... B.
        """

    @hookspec
    def topk_selected(self, selection: Selection) -> None:
        """A generator step was counted, after its optimizer stepped. For observers."""

    @hookspec
    def topk_epoch_ended(self, progress: Progress) -> None:
        """An epoch ended and k has decayed; ``progress.epoch`` counts it. For observers."""


# --- bundled plugins ----------------------------------------------------------------------------


class PaperTopK:
    """Built in: what the paper does."""

    @hookimpl(trylast=True)
    def topk_fraction(self, progress: Progress, config: TopKConfig) -> float:
        """``max(gamma**epoch, nu)``."""
        return KSchedule(config.gamma, config.nu).fraction(progress.epoch)

    @hookimpl(trylast=True)
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """The k highest, ties by position, NaN last."""
        return kept_rows(scores, k)


class BottomK:
    """The k *least* realistic rows, for the paper's analysis (section 4.1); NaN last."""

    @hookimpl
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """The k lowest, ties by position, NaN last."""
        return kept_rows(scores, k, -1.0)


class RandomK:
    """k rows at random, for the paper's analysis; draws from torch's global generator."""

    @hookimpl
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """k rows, each set of k with the same chance."""
        return kept_rows(torch.rand(scores.shape, device=scores.device), k)


ALWAYS: dict[str, Callable[[], Any]] = {
    "top-k": PaperTopK,
    # adapters import upstream repositories only once they are used
    "mimicry": lambda: importlib.import_module("topk_plugin.adapters.mimicry"),
    "meg": lambda: importlib.import_module("topk_plugin.adapters.meg"),
    "sngan": lambda: importlib.import_module("topk_plugin.adapters.sngan"),
    "sagan": lambda: importlib.import_module("topk_plugin.adapters.sagan"),
    "dcgan": lambda: importlib.import_module("topk_plugin.adapters.dcgan"),
    "studiogan": lambda: importlib.import_module("topk_plugin.adapters.studiogan"),
    "biggan_pytorch": lambda: importlib.import_module("topk_plugin.adapters.biggan_pytorch"),
}
"""Bundled plugins that are always loaded."""

BY_NAME: dict[str, Callable[[], Any]] = {"bottom-k": BottomK, "random-k": RandomK}
"""Bundled plugins that the setting ``plugins`` switches on."""


# --- the manager --------------------------------------------------------------------------------


class PluginManager(pluggy.PluginManager):
    """pluggy's, with errors that name the plugin and the hook."""

    def __init__(self) -> None:
        super().__init__(GROUP)
        self.add_hookspecs(Hooks)
        self.errors: list[HookError] = []  # the first of a hook that failed: a loop may swallow it

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """Register a plugin, under the ``name`` that errors call it by.

        Raises:
            HookError: it is no plugin: without a hook, with a name that is no hook, an argument
                that no hook has, a wrapper, or a name or an object that is registered already.
        """
        name = name or type(plugin).__name__
        if self.has_plugin(name):
            raise HookError(
                f"two plugins are named {name!r}: {self.get_plugin(name)!r} and {plugin!r}; "
                f"rename or uninstall one, or leave both out with {DISABLE}={name}"
            )
        if self.is_registered(plugin):
            raise HookError(f"plugin {name!r}: found twice, expected once; remove one of them")
        self._require_hooks(plugin, name)
        try:
            return super().register(plugin, name)
        except pluggy.PluginValidationError as error:
            raise HookError(
                f"plugin {name!r}: {' '.join(str(error).split())}; give the function only "
                "arguments of topk_plugin.hooks.Hooks"
            ) from None

    def _require_hooks(self, plugin: Any, name: str) -> None:
        known = [attribute for attribute in vars(Hooks) if attribute.startswith("topk_")]
        found = 0
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                if _looks_like_a_hook(plugin, attribute, known):
                    raise HookError(
                        f"plugin {name!r}: found {attribute} without a mark, expected a function "
                        "with @topk_plugin.hookimpl above it; mark it, or give it another name"
                    )
                continue
            found += 1
            hook = options.get("specname") or attribute
            if hook not in known:
                raise HookError(str(unknown_name(f"plugin {name!r}: {hook}", "hook", hook, known)))
            if options.get("wrapper") or options.get("hookwrapper"):
                raise HookError(
                    f"plugin {name!r}: its hook {hook} is a wrapper, expected a plain function; "
                    "return the result itself"
                )
        if not found:
            raise HookError(
                f"plugin {name!r}: found {plugin!r}, which implements no hook; expected functions "
                f"marked with @topk_plugin.hookimpl of these names: {', '.join(known)}"
            )


def _looks_like_a_hook(plugin: Any, attribute: str, known: Sequence[str]) -> bool:
    """Whether an attribute that is not marked would be passed over against the user's intention."""
    if not attribute.startswith("topk_"):
        return False
    value = getattr(plugin, attribute, None)
    return inspect.isroutine(value) or (attribute in known and value is not None)


def plugin_manager(names: Sequence[str] = (), plugins: Sequence[Any] = ()) -> PluginManager:
    """A manager with the bundled plugins, the installed ones, and those that are asked for.

    Args:
        names: bundled plugins that are not on by themselves, see ``BY_NAME``.
        plugins: modules, objects, or classes that are called without arguments.

    Raises:
        ConfigError: there is no plugin of a name, or one is asked for and disabled.
        HookError: a plugin does not fit the hooks, or cannot be loaded.
    """
    if isinstance(plugins, str) or not isinstance(plugins, Sequence):
        raise ConfigError(f"hooks: found {plugins!r}, expected a list of modules or objects")
    manager = PluginManager()
    disabled = [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]
    known = [*ALWAYS, *BY_NAME, *(point.name for point in _entry_points())]
    for name in disabled:
        if name not in known:
            raise unknown_name(f"{DISABLE}={name}", "plugin", name, known)
    for name, make in ALWAYS.items():
        if name not in disabled:
            manager.register(make(), name)
    for point in _entry_points():
        if point.name not in disabled:
            manager.register(_load(point), point.name)
    for name in names:
        if name not in BY_NAME:
            raise unknown_name(f"plugins: {name}", "bundled plugin", name, BY_NAME)
        if name in disabled:
            raise ConfigError(
                f"plugins: found {name!r}, which {DISABLE} leaves out; remove it from one of them"
            )
        manager.register(BY_NAME[name](), name)
    for place, plugin in enumerate(plugins):
        kind = plugin.__name__ if hasattr(plugin, "__name__") else type(plugin).__name__
        name = f"hooks[{place}] {kind}"
        try:
            made = plugin() if inspect.isclass(plugin) else plugin
        except Exception as error:
            raise HookError(
                f"plugin {name!r}: its class cannot be called without arguments, "
                f"{type(error).__name__}: {error}; give an instance instead"
            ) from error
        manager.register(made, name)
    return manager


@functools.cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    """The installed plugins: looked for once, since every distribution has to be read."""
    return tuple(importlib.metadata.entry_points(group=GROUP))


def _load(point: importlib.metadata.EntryPoint) -> Any:
    try:
        plugin = point.load()
        return plugin() if inspect.isclass(plugin) else plugin
    except Exception as error:
        owner = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
        raise HookError(
            f"plugin {point.name!r} (entry point {point.value!r}{owner}) cannot be loaded: "
            f"{type(error).__name__}: {error}; repair or uninstall it{_or_leave_out(point.name)}"
        ) from error


def _or_leave_out(name: str) -> str:
    installed = any(point.name == name for point in _entry_points())
    return f", or leave it out with {DISABLE}={name}" if installed else ""


# --- calls --------------------------------------------------------------------------------------


def first_result(manager: PluginManager, hook: str, needed: bool = False) -> Callable[..., Any]:
    """One function of keywords that asks the plugins in turn.

    Plugins that are registered later are not asked.

    Args:
        needed: an answer of None from all of them is an error, else it is None.

    Raises:
        ConfigError: an answer is needed, and no plugin implements the hook.
    """
    calls = _calls(manager, hook)
    if needed and not calls:
        raise ConfigError(f"{DISABLE}: no plugin is left that implements {hook}; leave top-k in")

    def ask(**arguments: Any) -> Any:
        for call in calls:
            result = call(arguments)
            if result is not None:
                return result
        if needed:
            raise HookError(
                f"no plugin answered the hook {hook}: all returned None for {_brief(arguments)}, "
                f"expected one that does; leave top-k out of {DISABLE}"
            )
        return None

    return ask


def observe(manager: PluginManager, hook: str) -> Callable[..., None] | None:
    """One function of keywords that calls every plugin, or None where none implements the hook."""
    calls = _calls(manager, hook)

    def tell(**arguments: Any) -> None:
        for call in calls:
            call(arguments)

    return tell if calls else None


def selection(manager: PluginManager) -> Select:
    """What ``topk_select`` answers; the built-in rule is called without any detour."""
    ask = first_result(manager, "topk_select", needed=True)
    plugins = [i.plugin for i in manager.hook.topk_select.get_hookimpls()]
    if len(plugins) == 1 and isinstance(plugins[0], PaperTopK) and not _switched_on(TRACE):
        return kept_rows
    return lambda scores, k: ask(scores=scores, k=k)


def replacing(manager: PluginManager) -> list[str]:
    """Names of the plugins that change what is kept, for headers and records."""
    found = [
        # not its place among the objects: an observer beside it changes nothing
        re.sub(r"^hooks\[\d+\] ", "", implementation.plugin_name)
        for hook in ("topk_scores", "topk_fraction", "topk_select")
        for implementation in getattr(manager.hook, hook).get_hookimpls()
        if not isinstance(implementation.plugin, PaperTopK)
    ]
    return list(dict.fromkeys(found))


def adapters(manager: PluginManager) -> dict[str, Adapter]:
    """All adapters by name.

    Raises:
        HookError: two plugins offer one of the same name.
    """
    found: dict[str, Adapter] = {}
    for call in reversed(_calls(manager, "topk_adapters")):
        for adapter in call({}) or ():
            if adapter.name in found:
                raise HookError(
                    f"two adapters are named {adapter.name!r}, for {found[adapter.name].upstream} "
                    f"and {adapter.upstream}; leave one of their plugins out with {DISABLE}"
                )
            found[adapter.name] = adapter
    return found


class Result(NamedTuple):
    """What a hook may return beside None."""

    expected: str
    holds: Callable[..., bool]  # of the result and the hook's arguments


def _are_adapters(result: Any) -> bool:
    return isinstance(result, list | tuple) and all(isinstance(a, Adapter) for a in result)


def _are_scores(result: Any, output: Any) -> bool:
    scores = [result] if isinstance(result, Tensor) else result
    leaves = pytree.tree_leaves(output)
    return (
        isinstance(scores, list | tuple)
        and len(scores) > 0
        and all(
            isinstance(score, Tensor)
            and score.is_floating_point()
            and any(score is leaf for leaf in leaves)
            for score in scores
        )
    )


def _is_fraction(result: Any, progress: Progress, config: TopKConfig) -> bool:
    return isinstance(result, Real) and 0 < float(result) <= 1


def _is_mask(result: Any, scores: Tensor, k: Tensor) -> bool:
    return (
        isinstance(result, Tensor)
        and result.dtype == torch.bool
        and result.shape == scores.shape
        and result.device == scores.device
    )


RESULTS = {
    "topk_adapters": Result("a list of topk_plugin.Adapter", _are_adapters),
    "topk_scores": Result(
        "floating tensors of that output, not computed from them (an object that holds tensors "
        "has to be registered with torch.utils._pytree)",
        _are_scores,
    ),
    "topk_fraction": Result("a number in (0, 1]", _is_fraction),
    "topk_select": Result("a bool mask of the scores' shape, on their device", _is_mask),
}


def _calls(manager: PluginManager, hook: str) -> list[Callable[[Mapping[str, Any]], Any]]:
    """The hook's implementations, the last registered first."""
    implementations = reversed(getattr(manager.hook, hook).get_hookimpls())
    # the built-in rule is the last resort, also after a plugin that asks to be tried last
    ordered = sorted(implementations, key=lambda i: isinstance(i.plugin, PaperTopK))
    return [_call(implementation, hook, manager.errors) for implementation in ordered]


def _call(
    implementation: Any, hook: str, errors: list[HookError]
) -> Callable[[Mapping[str, Any]], Any]:
    """An implementation as a function of all the hook's arguments, checked and traced."""
    function, plugin = implementation.function, implementation.plugin_name
    required, optional = tuple(implementation.argnames), tuple(implementation.kwargnames)
    allowed, traced = RESULTS.get(hook), _switched_on(TRACE)
    remedy = f"correct it{_or_leave_out(plugin)}"

    def failed(message: str) -> HookError:
        error = HookError(message)
        if not (torch.compiler.is_compiling() or errors):
            errors.append(error)
        return error

    def call(arguments: Mapping[str, Any]) -> Any:
        try:
            result = function(
                *[arguments[name] for name in required],
                **{name: arguments[name] for name in optional if name in arguments},
            )
        except Exception as error:
            raise failed(
                f"plugin {plugin!r}: its hook {hook} raised {type(error).__name__}: {error}; "
                f"{remedy}"
            ) from error
        if traced and not torch.compiler.is_compiling():
            said = f"({_brief(arguments)}) -> {_shown(result)}"
            print(f"top-k hook {hook} of {plugin!r}{said}", file=sys.stderr, flush=True)
        if result is not None and allowed is not None and not allowed.holds(result, **arguments):
            raise failed(
                f"plugin {plugin!r}: its hook {hook} returned {_shown(result)} for "
                f"{_brief(arguments)}, expected {allowed.expected}, or None; {remedy}"
            )
        return result

    return call


def _brief(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in arguments.items())


def _shown(value: Any) -> str:
    """Shapes instead of tensors, which would have to be read from the device."""
    if isinstance(value, Selection):
        return f"Selection(step={value.step}, epoch={value.epoch}, batch={value.batch})"
    if isinstance(value, Tensor | Mapping | list) or type(value) is tuple:
        return describe(value)
    return repr(value)


def _switched_on(variable: str) -> bool:
    text = os.environ.get(variable, "").strip()
    if text not in ("", "0", "1"):
        raise ConfigError(f"{variable}: found {text!r}, expected 1 or 0; correct or unset it")
    return text == "1"
