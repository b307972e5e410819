"""What a command asks for, and the settings that it comes to."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from topk_plugin.errors import ConfigError, unknown_name
from topk_plugin.reference.experiments import Experiment

OF_DATA = ("dataset", "data", "download")
"""Settings that are flags of the command."""


def settings_of(experiment: Experiment, preset: str, overrides: Mapping[str, str]) -> Any:
    """The trainer's settings: its defaults, the preset's, and ``overrides`` (name: text).

    Raises:
        ConfigError: an unknown preset or setting, or a value of the wrong type or out of range.
    """
    if preset not in experiment.presets:
        raise unknown_name(f"--preset {preset}", "preset", preset, experiment.presets)
    module = importlib.import_module(f"topk_plugin.reference.{experiment.trainer}")
    types = typing.get_type_hints(module.Settings)
    known = [field.name for field in dataclasses.fields(module.Settings)]
    values = dict(experiment.presets[preset].settings)
    for name, text in overrides.items():
        if name in OF_DATA and name not in known:
            raise ConfigError(
                f"--{name}: found {text!r}, expected nothing: {experiment.title} has no data set; "
                "leave the flag out"
            )
        if name not in known:
            raise unknown_name(f"--set {name}", "setting", name, known)
        values[name] = _parsed(name, text, types[name])
    return module.Settings(**values)


def _parsed(name: str, text: str, kind: Any) -> Any:
    accepted = typing.get_args(kind) or (kind,)
    if str in accepted:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if isinstance(value, str) and float in accepted:  # to YAML 1e-4 is text
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) in accepted:
        return value
    if float in accepted and type(value) is int:
        return float(value)
    names = " or ".join("null" if each is type(None) else each.__name__ for each in accepted)
    raise ConfigError(f"--set {name}: found {text!r}, expected {names}")


class Request(NamedTuple):
    """What `topk reproduce` was asked for; None leaves it to the preset."""

    result: str  # of experiments.RESULTS
    preset: str = "smoke"
    seeds: int | None = None
    cells: Sequence[int] | None = None
    arms: Sequence[str] | None = None
    overrides: Mapping[str, str] = {}
    out: Path | None = None
    device: str | None = None  # "cpu" or "cuda"; None: CUDA where there is one
    workers: int | None = None  # processes; None: one a core, or one on a GPU
    command: str = ""
    tensorboard: bool = False


def chosen(flag: str, wanted: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """What was wanted, in the order of what is known.

    Raises:
        ConfigError: something that is not known.
    """
    for item in wanted:
        if item not in known:
            raise unknown_name(f"{flag} {item}", flag[2:-1], str(item), map(str, known))
    return [item for item in known if item in wanted]


def whole(pieces: Sequence[str], known: Collection[str]) -> list[str]:
    """Names whose list was split at commas, the longest known ones, for some hold commas.

    A piece that begins none of them is left for :func:`chosen`.
    """
    found, first = [], 0
    while first < len(pieces):
        ends = range(len(pieces), first, -1)
        last = next((end for end in ends if ",".join(pieces[first:end]) in known), first + 1)
        found.append(",".join(pieces[first:last]))
        first = last
    return found
