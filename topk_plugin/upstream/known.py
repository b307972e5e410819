"""The adapters that are known here, and which of them a checkout is for."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from topk_plugin.adapter import Adapter
from topk_plugin.errors import ConfigError, HookError, UnsupportedUpstream, unknown_name
from topk_plugin.plugins.calls import implementations_of
from topk_plugin.plugins.manager import (
    DISABLE,
    PluginManager,
    bundled_adapters,
    disabled_names,
    plugin_manager,
)
from topk_plugin.strict_yaml import read_yaml
from topk_plugin.upstream.checkout import find_checkout
from topk_plugin.upstream.on_disk import patched, planned


def adapters(manager: PluginManager | None = None) -> dict[str, Adapter]:
    """All adapters by name: those that come along, then those that plugins offer.

    Raises:
        HookError: two have the same name, or a file of ``topk_plugin.adapters`` has none.
    """
    disabled = disabled_names()
    found = {name: _bundled(name) for name in bundled_adapters() if name not in disabled}
    for call in reversed(implementations_of(manager or plugin_manager(), "topk_adapters")):
        for adapter in call({}) or ():
            if adapter.name in found:
                raise HookError(
                    f"two adapters are named {adapter.name!r}, for {found[adapter.name].upstream} "
                    f"and {adapter.upstream}; leave one of their plugins out with {DISABLE}"
                )
            found[adapter.name] = adapter
    return found


def _bundled(name: str) -> Adapter:
    """The ``ADAPTER`` of a module of ``topk_plugin.adapters``."""
    try:
        module = importlib.import_module(f"topk_plugin.adapters.{name}")
    except Exception as error:
        raise HookError(
            f"adapter {name!r}: its file cannot be imported, {type(error).__name__}: {error}; "
            f"correct it, or leave it out with {DISABLE}={name}"
        ) from error
    adapter = getattr(module, "ADAPTER", None)
    if not isinstance(adapter, Adapter) or adapter.name != name:
        found = f"one named {adapter.name!r}" if isinstance(adapter, Adapter) else repr(adapter)
        raise HookError(
            f"adapter {name!r}: found {found} as ADAPTER in {module.__file__}, expected "
            f"ADAPTER = topk_plugin.Adapter(name={name!r}, ...); correct it, or leave it out with "
            f"{DISABLE}={name}"
        )
    return adapter


def find_adapter(name: str, origin: str = "--adapter ") -> Adapter:
    """The adapter of that name; raises ConfigError where there is none, and says ``origin``."""
    known = adapters()
    if name not in known:
        raise unknown_name(f"{origin}{name}", "adapter", name, known)
    return known[name]


def suiting(roots: Sequence[Path], command: Sequence[str]) -> tuple[Adapter, str] | None:
    """The adapter for a checkout, as :func:`recognised` has it; None where there is none.

    Raises:
        ConfigError: several fit.
    """
    fit, _, _ = _fitting(roots, command, parents=True, force=False)
    return recognised(roots, command) if fit else None


def recognised(
    roots: Sequence[Path],
    command: Sequence[str] = (),
    parents: bool = True,
    force: bool = False,
) -> tuple[Adapter, str]:
    """The adapter for a checkout, by its files, or by what the launched script imports; and why.

    Args:
        roots: folders of the checkout.
        command: what is launched, if anything.
        parents: look in the folders above, too.
        force: names and positions are enough, where nothing fits as it is.

    Raises:
        ConfigError: there is none, or several fit.
    """
    fit, forced, differ = _fitting(roots, command, parents, force)
    fit = fit or (forced if force else {})
    if len(fit) == 1:
        return next(iter(fit.values()))
    known = ", ".join(adapters())
    if fit:
        raise ConfigError(
            f"--adapter auto: found what fits {' and '.join(fit)}, expected one; name it: "
            f"--adapter {next(iter(fit))}"
        )
    places = " or ".join(str(root.resolve()) for root in dict.fromkeys(roots))
    raise ConfigError(
        f"--adapter auto: found no repository with an adapter ({known}) in {places}. "
        + "".join(f"Nearly: {text}. " for text in dict.fromkeys(differ))
        + "Name the adapter, or the critic: --critic module:Class"
    )


Fit = dict[str, tuple[Adapter, str]]
"""Adapters by name, and why they fit."""


def _fitting(
    roots: Sequence[Path], command: Sequence[str], parents: bool, force: bool
) -> tuple[Fit, Fit, list[str]]:
    """What fits as it is, what by names and positions, and what keeps others from fitting."""
    fit: Fit = {}
    forced: Fit = {}
    differ: list[str] = []
    imported = _imports(Path(command[0])) if command and command[0] != "-m" else set()
    for name, adapter in adapters().items():
        if adapter.patch is not None:
            base = find_checkout(adapter, roots, parents)
            if base is None:
                continue
            found = adapter, f"recognised by {', '.join(adapter.patch.files)} in {base}"
            for fits, by_names in ((fit, False), (forced, True)):
                try:
                    planned(adapter, base, modern=False, force=by_names)
                    fits[name] = found
                    break
                except UnsupportedUpstream as error:
                    if not by_names:
                        why = str(error)
            if name in forced or (name not in fit and patched(base)):
                differ.append(why)  # the rest has nothing but file names in common
        elif imported & {wrap.module.partition(".")[0] for wrap in adapter.wraps}:
            fit[name] = adapter, f"recognised by what {command[0]} imports"
    return fit, forced, differ


def _imports(script: Path) -> set[str]:
    """Packages that a script imports, as far as its text says."""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.partition(".")[0] for name in names}


def own_settings(adapter: Adapter, command: Sequence[str]) -> Path | None:
    """The configuration file that the upstream is launched with, if it says something of top-k."""
    file = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        flag, is_joined, value = word.partition("=")
        if flag in adapter.config_flags:
            file = Path(value if is_joined else following)  # the last one counts
    if file is not None and file.is_file():
        loss = read_yaml(file).get("LOSS")
        if isinstance(loss, Mapping) and any("topk" in str(key).lower() for key in loss):
            return file
    return None
