"""The settings of top-k: each is declared once, as a field of `TopKConfig`.

Keys of a mapping or a YAML file, command-line flags and environment variables are all derived
from the fields. StudioGAN's three names are the only others.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from topk_plugin.errors import ConfigError, unknown_name
from topk_plugin.kinds import (
    COUNT,
    EVERY,
    FRACTION,
    HEADS,
    NAMES,
    RESTORE,
    SWITCH,
    Kind,
    choice,
    plain,
)
from topk_plugin.strict_yaml import read_yaml

Direction = Literal["auto", "high", "low"]
Gate = Literal["auto", "score", "shielded"]
Reduction = Literal["mean", "sum"]
Companions = Literal["auto", "follow", "keep"]
Passes = Literal["adversarial", "all"]
Scope = Literal["rank", "global"]

# TOPK_ variables that are no settings: where tests find checkouts of other projects, the switches
# of the plugin manager, and what `topk run` tells the processes that a script starts.
RESERVED_VARIABLES = (
    "TOPK_UPSTREAMS",
    "TOPK_TRACE_PLUGINS",
    "TOPK_DISABLE_PLUGINS",
    "TOPK_ACTIVATION",
)

# StudioGAN's keys in the section LOSS of its YAML files, and what they set here.
STUDIOGAN = {"apply_topk": "enabled", "topk_gamma": "gamma", "topk_nu": "nu"}


def _setting(default: Any, kind: Kind, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True)
class TopKConfig:
    """How top-k training is done. The text beside a field says what it means.

    Raises ConfigError where a value has the wrong type or is out of its range.
    """

    enabled: bool = _setting(True, SWITCH, "whether top-k is applied; if not, nothing changes")
    gamma: float = _setting(
        0.99, FRACTION, "factor by which k shrinks each epoch, in (0, 1]; 1 keeps k = B (sec. 3.2)"
    )
    nu: float = _setting(
        0.5, FRACTION, "smallest k, as a fraction of the batch, in (0, 1] (sec. 3.2)"
    )
    restore: tuple[int, ...] = _setting(
        (),
        RESTORE,
        "epochs T0:T1, 1 <= T0 < T1: k falls until T0 and then goes back to B in equal steps, "
        "where it is from T1 on; not in the paper",
    )
    direction: Direction = _setting(
        "auto",
        choice(Direction),
        "which scores are more realistic; auto reads it from the loss (sec. 3.1 assumes high)",
    )
    gate: Gate = _setting(
        "auto",
        choice(Gate),
        "where dropped rows lose their gradient: at the score, which is exact in generator steps, "
        "or shielded, which leaves the critic's own gradient as it was in any step (sec. 3.3)",
    )
    reduction: Reduction = _setting(
        "mean",
        choice(Reduction),
        "mean over the kept rows, for losses that average (sec. 3.3), or sum (sec. 3.1)",
    )
    companions: Companions = _setting(
        "auto",
        choice(Companions),
        "the critic's other outputs of a dropped row (class logits, embeddings, features): they "
        "follow, and send no gradient either, as the paper zeroes all that the worst samples "
        "contribute (sec. 3.1), or keep it; auto: as the adapter says, else keep",
    )
    every: Literal["epoch"] | int = _setting(
        "epoch", EVERY, "k shrinks each epoch (sec. 3.2), or each N >= 1 generator steps (sec. 4)"
    )
    passes: Passes = _setting(
        "adversarial",
        choice(Passes),
        "which passes over the data are epochs: those from the first generator step through the "
        "critic on, or all in which an optimizer stepped, warm-up on another loss included",
    )
    scope: Scope = _setting(
        "rank",
        choice(Scope),
        "whose rows compete for k: those of each rank's batch, or all ranks' (global), which gives "
        "the gradient of one process that has them all",
    )
    heads: tuple[str | int, ...] = _setting(
        (),
        HEADS,
        "outputs of the critic, by name or index, that share one ranking by their average score; "
        "none: the one score output. Use FLAG=-1,0 if the first is negative",
    )
    spare: bool = _setting(
        True,
        SWITCH,
        "whether a critic whose rows act on each other (BatchNorm) forms no gradient of its own in "
        "generator steps, once the loop was seen to throw it away unread in 20 of them",
    )
    start_epoch: int = _setting(
        0, COUNT, "epochs >= 0 that had ended before this run, to resume the decay (sec. 3.2)"
    )
    plugins: tuple[str, ...] = _setting(
        (),
        NAMES,
        "bundled plugins to switch on: bottom-k or random-k instead of top-k, for the paper's "
        "analysis",
    )

    def __post_init__(self) -> None:
        for name in _FIELDS:
            object.__setattr__(self, name, _checked(name, getattr(self, name), name))

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], path: str = "topk") -> "TopKConfig":
        """Settings from a mapping of field names, or from one with StudioGAN's LOSS section.

        Raises ConfigError, which names the key below `path`, for what is unknown or out of range.
        """
        _require_mapping(mapping, path, f"gamma: {cls.gamma}")
        read = _studiogan_settings if "LOSS" in mapping else _settings
        return cls(**read(mapping, f"{path}."))

    @classmethod
    def from_args(cls, namespace: argparse.Namespace, prefix: str = "topk") -> "TopKConfig":
        """Settings from the `namespace` that a parser read on which `add_arguments` was called.

        Raises ConfigError where that has no value for a setting of this `prefix`, or a wrong one.
        """
        values = {}
        for name in _FIELDS:
            flag = _flag(name, prefix)
            dest = flag.lstrip("-").replace("-", "_")
            if not hasattr(namespace, dest):
                raise ConfigError(
                    f"{flag}: found no attribute {dest!r} in the arguments, expected one for each "
                    "setting; call topk_plugin.add_arguments(parser) before parser.parse_args()"
                )
            values[name] = _checked(name, getattr(namespace, dest), flag)
        return cls(**values)

    @classmethod
    def from_sources(
        cls, flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None
    ) -> "TopKConfig":
        """Settings of `topk run`: a flag beats a TOPK_ variable beats the file beats the default.

        flags: values by field name, None for a flag that was not given; other names are ignored.
        environ: such as os.environ. A TOPK_ variable that is no setting is an error.
        file: in YAML, see `read_file`.

        Raises ConfigError for what is unknown, of the wrong type or out of its range.
        """
        values = {} if file is None else read_file(file)
        variables = {f"TOPK_{name.upper()}": name for name in _FIELDS}
        for variable, text in environ.items():
            if not variable.startswith("TOPK_") or variable in RESERVED_VARIABLES:
                continue
            if variable not in variables:
                known = (*variables, *RESERVED_VARIABLES)
                raise unknown_name(variable, "environment variable", variable, known)
            name = variables[variable]
            try:
                value = _FIELDS[name].metadata["kind"].parse(text)
            except ValueError:
                value = text  # no check accepts it, and the error shows the text as it was found
            values[name] = _checked(name, value, variable)
        for name in _FIELDS:
            if flags.get(name) is not None:
                values[name] = _checked(name, flags[name], _flag(name))
        return cls(**values)

    def ranking_settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share, as types `torch.load` accepts safely."""
        names = ("gamma", "nu", "direction", "reduction", "companions", "every", "scope")
        lists = {name: list(getattr(self, name)) for name in ("restore", "heads", "plugins")}
        return {name: getattr(self, name) for name in names} | lists


_FIELDS = {field.name: field for field in dataclasses.fields(TopKConfig)}


def read_file(path: Path) -> dict[str, Any]:
    """The settings that a YAML file gives, by field name, validated; errors name file and key.

    The file is one of
    - the settings themselves, `gamma: 0.99` and so on, and nothing else;
    - a configuration of something else with a section `topk`: that section has the settings;
    - a StudioGAN configuration, whose section `LOSS` says apply_topk, topk_gamma and topk_nu.
    """
    document = read_yaml(path)
    if "topk" in document:
        loss = document.get("LOSS")
        if isinstance(loss, Mapping) and (twice := [key for key in STUDIOGAN if key in loss]):
            raise ConfigError(
                f"{path}: found a section topk and LOSS.{twice[0]}, expected one of the two; "
                f"remove topk, or {', '.join(twice)} from LOSS"
            )
        _require_mapping(document["topk"], f"{path}: topk", f"gamma: {TopKConfig.gamma}")
        return _settings(document["topk"], f"{path}: topk.")
    if "LOSS" in document:
        return _studiogan_settings(document, f"{path}: ")
    return _settings(document, f"{path}: ", sections=("topk", "LOSS"))


def _settings(
    mapping: Mapping[str, Any], prefix: str, sections: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The settings in a mapping, validated; `prefix` and a key say where the user wrote it.

    sections: keys that the user might have meant, besides the settings.
    """
    for key in mapping:
        if key not in _FIELDS:
            raise unknown_name(f"{prefix}{key}", "key", str(key), (*_FIELDS, *sections))
    return {key: _checked(key, value, f"{prefix}{key}") for key, value in mapping.items()}


def _studiogan_settings(mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The settings in StudioGAN's section LOSS: on or off, and if on, gamma and nu.

    All else in the mapping is StudioGAN's. It writes "N/A" for what does not apply.
    """
    loss, path = mapping["LOSS"], f"{prefix}LOSS"
    _require_mapping(loss, path, "apply_topk: false")
    for key in mapping:
        if key in _FIELDS:
            raise _refused(
                f"{prefix}{key}", mapping[key], "no settings beside LOSS", "remove it or LOSS"
            )
    for key in loss:
        if key not in STUDIOGAN and _means_topk(str(key)):
            raise unknown_name(f"{path}.{key}", "key", str(key), STUDIOGAN)

    on = None
    if "apply_topk" in loss:
        on = _checked("enabled", loss["apply_topk"], f"{path}.apply_topk", "write one of them")
    values = {"enabled": on}
    for key in ("topk_gamma", "topk_nu"):
        name, given = STUDIOGAN[key], loss.get(key, "N/A")
        if on:
            default = _FIELDS[name].default
            remedy = f"write one, such as {key}: {default}, or apply_topk: false"
            if key not in loss:
                expected = _FIELDS[name].metadata["kind"].expected
                raise ConfigError(f"{path}.{key}: found nothing, expected {expected}; {remedy}")
            values[name] = _checked(name, given, f"{path}.{key}", remedy)
        elif not (isinstance(given, str) and given == "N/A"):
            state = "missing" if on is None else "false"
            raise _refused(
                f"{path}.{key}",
                given,
                f"'N/A' or nothing while apply_topk is {state}",
                f"write apply_topk: true, or remove {key}",
            )
    if on is None:
        raise ConfigError(
            f"{path}: found no apply_topk, expected it to turn top-k on or off; write "
            "apply_topk: true with topk_gamma and topk_nu, or apply_topk: false"
        )
    return values


def _means_topk(key: str) -> bool:
    """Whether a key of LOSS was meant as one of StudioGAN's for top-k."""
    word = key.lower()
    # 0.85: apply_lo, another key of StudioGAN, is at 0.78 of apply_topk
    close = difflib.get_close_matches(word, STUDIOGAN, n=1, cutoff=0.85)
    return bool(close) or "topk" in word.replace("_", "")


def add_arguments(parser: argparse.ArgumentParser, prefix: str = "topk") -> None:
    """Add --topk and --topk-gamma, --topk-nu, ... to `parser`; read by `TopKConfig.from_args`.

    prefix: what the flags begin with, in place of topk.
    """
    _add_flags(parser, prefix, "store_true", lambda field: _listed(field.default))


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --gamma, --nu, ...: None where not given; read by `TopKConfig.from_sources`."""
    _add_flags(parser, "", argparse.BooleanOptionalAction, lambda field: None)


def _add_flags(
    parser: argparse.ArgumentParser, prefix: str, switch: Any, default: Callable[[Any], Any]
) -> None:
    group = parser.add_argument_group("top-k training")
    for name, field in _FIELDS.items():
        flag, text = _flag(name, prefix), field.metadata["help"]
        if name == "enabled":
            group.add_argument(flag, action=switch, help=text)
            continue
        if field.metadata["kind"] is SWITCH:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=default(field), help=text)
            continue
        kind, shown = field.metadata["kind"], "none" if field.default == () else field.default
        group.add_argument(
            flag,
            type=_argument_type(kind),
            default=default(field),
            metavar=kind.metavar,
            help=f"{text} (default: {shown})",
        )


def _argument_type(kind: Kind) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return _listed(kind.parse(text))
        except ValueError:
            message = f"found {text!r}, expected {kind.expected}"
            raise argparse.ArgumentTypeError(message) from None

    return parse


def _flag(name: str, prefix: str = "") -> str:
    if not prefix:
        return "--" + name.replace("_", "-")
    return f"--{prefix}" if name == "enabled" else f"--{prefix}-{name.replace('_', '-')}"


def _listed(value: Any) -> Any:
    """A list for a tuple, which YAML has no word for: scripts dump what their parser read."""
    return list(value) if isinstance(value, tuple) else value


def _require_mapping(value: Any, origin: str, example: str) -> None:
    if not isinstance(value, Mapping):
        remedy = f"write settings below it, such as {example}"
        raise _refused(origin, value, "a mapping", remedy)


def _checked(name: str, value: Any, origin: str, remedy: str = "") -> Any:
    """The value of setting `name`, validated; `origin` says where the user wrote it."""
    kind: Kind = _FIELDS[name].metadata["kind"]
    try:
        return kind.check(plain(value))
    except ValueError:
        default = _FIELDS[name].default
        remedy = remedy or f"correct it or leave it out (default: {default!r})"
        if isinstance(value, str) and _spells(kind, value):
            remedy += ". This is text: write it without quotes"
            remedy += ", and an exponent as in 1.0e-3" if kind is FRACTION else ""
        raise _refused(origin, value, kind.expected, remedy) from None


def _spells(kind: Kind, text: str) -> bool:
    """Whether text spells a number or a switch that is accepted; to YAML, even 1e-3 is text."""
    try:
        return not isinstance(kind.check(kind.parse(text)), tuple)
    except ValueError:
        return False


def _refused(origin: str, found: Any, expected: str, remedy: str) -> ConfigError:
    return ConfigError(f"{origin}: found {found!r}, expected {expected}; {remedy}")
