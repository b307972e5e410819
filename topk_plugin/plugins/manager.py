"""Finding plugins: the bundled ones, the installed ones, and those that are asked for."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import pluggy

from topk_plugin.errors import ConfigError, HookError, unknown_name
from topk_plugin.hooks import GROUP, Hooks
from topk_plugin.plugins.bundled import BY_NAME, PaperTopK

DISABLE = "TOPK_DISABLE_PLUGINS"

ALWAYS: dict[str, Callable[[], Any]] = {"top-k": PaperTopK}
"""Bundled plugins that are always loaded."""


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
    disabled = disabled_names()
    known = [*ALWAYS, *BY_NAME, *(point.name for point in _entry_points())]
    for name in disabled:
        if name not in known and name not in (adapters := bundled_adapters()):
            raise unknown_name(f"{DISABLE}={name}", "plugin", name, [*known, *adapters])
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


def disabled_names() -> list[str]:
    """Plugins and adapters that ``TOPK_DISABLE_PLUGINS`` leaves out."""
    return [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]


def bundled_adapters() -> list[str]:
    """Names of the adapters that come along, by their files; none of them is imported."""
    spec = importlib.util.find_spec("topk_plugin.adapters")
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(module.name for module in pkgutil.iter_modules(places or []))


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
            f"{type(error).__name__}: {error}; repair or uninstall it{or_leave_out(point.name)}"
        ) from error


def or_leave_out(name: str) -> str:
    installed = any(point.name == name for point in _entry_points())
    return f", or leave it out with {DISABLE}={name}" if installed else ""
