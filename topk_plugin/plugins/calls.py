"""Calling plugins, as plain functions that are made when a TopK is built.

pluggy registers and orders the implementations; its own call cannot be compiled into a graph.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from topk_plugin.adapter import Adapter
from topk_plugin.compat import is_compiling
from topk_plugin.config import TopKConfig
from topk_plugin.core.choice import Select
from topk_plugin.core.ranking import describe, kept_rows
from topk_plugin.core.trees import tree_leaves
from topk_plugin.errors import ConfigError, HookError
from topk_plugin.hooks import Progress, Selection
from topk_plugin.plugins.bundled import PaperTopK
from topk_plugin.plugins.manager import DISABLE, PluginManager, or_leave_out
from topk_plugin.streams import say

TRACE = "TOPK_TRACE_PLUGINS"


def first_result(manager: PluginManager, hook: str, needed: bool = False) -> Callable[..., Any]:
    """One function of keywords that asks the plugins in turn.

    Plugins that are registered later are not asked.

    Args:
        needed: an answer of None from all of them is an error, else it is None.

    Raises:
        ConfigError: an answer is needed, and no plugin implements the hook.
    """
    calls = implementations_of(manager, hook)
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


def if_any(manager: PluginManager, hook: str) -> Callable[..., Any] | None:
    """The same, or None where no plugin implements the hook."""
    return first_result(manager, hook) if implementations_of(manager, hook) else None


def observe(manager: PluginManager, hook: str) -> Callable[..., None] | None:
    """One function of keywords that calls every plugin, or None where none implements the hook."""
    calls = implementations_of(manager, hook)

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


class Result(NamedTuple):
    """What a hook may return beside None."""

    expected: str
    holds: Callable[..., bool]  # of the result and the hook's arguments


def _are_adapters(result: Any) -> bool:
    return isinstance(result, (list, tuple)) and all(isinstance(a, Adapter) for a in result)


def _are_scores(result: Any, output: Any) -> bool:
    scores = [result] if isinstance(result, Tensor) else result
    leaves = tree_leaves(output)
    return (
        isinstance(scores, (list, tuple))
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


def implementations_of(
    manager: PluginManager, hook: str
) -> list[Callable[[Mapping[str, Any]], Any]]:
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
    remedy = f"correct it{or_leave_out(plugin)}"

    def failed(message: str) -> HookError:
        error = HookError(message)
        if not (is_compiling() or errors):
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
        if traced and not is_compiling():
            said = f"({_brief(arguments)}) -> {_shown(result)}"
            say(f"top-k hook {hook} of {plugin!r}{said}")
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
    if isinstance(value, (Tensor, Mapping, list)) or type(value) is tuple:
        return describe(value)
    return repr(value)


def _switched_on(variable: str) -> bool:
    text = os.environ.get(variable, "").strip()
    if text not in ("", "0", "1"):
        raise ConfigError(f"{variable}: found {text!r}, expected 1 or 0; correct or unset it")
    return text == "1"
