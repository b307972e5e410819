"""The arms of a trial: without top-k, and with it under one set of settings or several."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from topk_plugin.config import TopKConfig, add_run_arguments
from topk_plugin.errors import ConfigError, unknown_name

PLAIN = "plain"
"""The arm without top-k, by the same launcher, so that an adapter's shims hold for it too."""


class Arm(NamedTuple):
    """One way to train."""

    name: str  # as the report calls it
    flags: tuple[str, ...]  # for `topk run`, after those that all arms have


def arms_of(given: Sequence[str]) -> list[Arm]:
    """``plain``, and an arm for each of ``given``, such as "gamma=0.99,nu=0.5"; none: "top-k".

    Raises:
        ConfigError: an arm is no list of settings, an unknown one or one that is given twice is in
            it, or two arms bear one name.
    """
    arms = [Arm(PLAIN, ("--no-enabled",))]
    arms += [Arm(text, _flags_of(text)) for text in given] or [Arm("top-k", ())]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"--arm: found {name!r} {names.count(name)} times, expected arms that differ; "
                "leave one of them out"
            )
    return arms


def settings_of(
    arm: Arm, flags: Sequence[str], environ: Mapping[str, str], file: Path | None
) -> dict[str, Any]:
    """What an arm is trained with, wherever it was said, as JSON has it; of PLAIN nothing matters.

    Args:
        flags: settings of all arms, as flags.
        file: that ``--config`` names.

    Raises:
        ConfigError: a variable or the file has an unknown setting, or a wrong one.
    """
    if arm.name == PLAIN:
        return {}
    parser = argparse.ArgumentParser(add_help=False)
    add_run_arguments(parser)
    given = vars(parser.parse_args([*flags, *arm.flags]))
    found: dict[str, Any] = json.loads(
        json.dumps(dataclasses.asdict(TopKConfig.from_sources(given, environ, file)))
    )
    return found


def _flags_of(text: str) -> tuple[str, ...]:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_run_arguments(parser)
    known = {action.dest: action for action in parser._actions}
    flags: dict[str, str] = {}
    # heads=0,1 has a comma of its own
    for item in re.split(r",(?=\s*[\w-]+\s*=)", text):
        name, equals, value = (part.strip() for part in item.partition("="))
        setting = name.replace("-", "_")
        if not equals:
            raise ConfigError(
                f"--arm: found {text!r}, expected settings such as gamma=0.99,nu=0.5; "
                f"write {name}=VALUE, or leave it out"
            )
        if setting not in known:
            raise unknown_name(f"--arm {text}", "setting", name, known)
        if setting in flags:
            raise ConfigError(f"--arm: found {name} twice in {text!r}, expected it once")
        flags[setting] = _flag(known[setting], value, text)
    try:
        TopKConfig.from_sources(vars(parser.parse_args([*flags.values()])), {})
    except (argparse.ArgumentError, ConfigError) as error:
        raise ConfigError(f"--arm {text}: {error}") from None
    return tuple(flags.values())


def _flag(action: argparse.Action, value: str, text: str) -> str:
    """A setting of ``text`` as a flag."""
    flag = action.option_strings[0]
    if not isinstance(action, argparse.BooleanOptionalAction):
        return f"{flag}={value}"
    switch = {"true": True, "on": True, "yes": True, "1": True}
    switch |= {"false": False, "off": False, "no": False, "0": False}
    if value.lower() not in switch:
        raise ConfigError(f"--arm {text}: found {value!r}, expected true or false")
    return flag if switch[value.lower()] else flag.replace("--", "--no-", 1)


def flags_of(given: Mapping[str, object]) -> list[str]:
    """Settings that were given as flags of a command, as flags again.

    Args:
        given: by name; None for those that were not given.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_run_arguments(parser)
    flags: list[str] = []
    for action in parser._actions:
        value = given.get(action.dest)
        if value is None:
            continue
        if isinstance(action, argparse.BooleanOptionalAction):
            flags.append(action.option_strings[0 if value else 1])
            continue
        between = ":" if action.dest == "restore" else ","
        text = between.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        flags.append(f"{action.option_strings[0]}={text}")
    return flags
