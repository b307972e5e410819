"""The settings of top-k: each is declared once, as a field of `TopKConfig`.

Keys of a mapping, command-line flags and environment variables are all derived from the fields.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from topk_plugin.errors import ConfigError

Direction = Literal["auto", "high", "low"]
Gate = Literal["auto", "score", "shielded"]
Reduction = Literal["mean", "sum"]

# TOPK_ variables that are no settings: tests find checkouts of other projects by this one.
RESERVED_VARIABLES = ("TOPK_UPSTREAMS",)


class Kind(NamedTuple):
    """What values a setting takes. `check` and `parse` raise ValueError for any other."""

    expected: str
    check: Callable[[Any], Any]  # value -> the same value as a plain Python type
    parse: Callable[[str], Any]  # text of a flag or a variable -> value, not yet checked
    metavar: str


def _is(test: Callable[[Any], bool], *types: type) -> Callable[[Any], Any]:
    """A check: the value has the first of `types`, or can be converted to it from the others."""

    def check(value: Any) -> Any:
        # bool is an int in Python, but True is no batch fraction and no number of steps
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError
        if not test(value):
            raise ValueError
        return types[0](value)

    return check


def _choice(literal: Any) -> Kind:
    choices = get_args(literal)
    check = _is(lambda value: value in choices, str)
    return Kind("one of " + ", ".join(map(repr, choices)), check, check, f"{{{','.join(choices)}}}")


def _parse_switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError
    return word in ("1", "true", "yes", "on")


def _check_every(value: Any) -> int | str:
    return value if value == "epoch" else _is(lambda steps: steps >= 1, int)(value)


def _check_heads(value: Any) -> tuple[int | str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError
    name, index = _is(bool, str), _is(lambda _: True, int)
    return tuple((name if isinstance(head, str) else index)(_plain(head)) for head in value)


def _parse_heads(text: str) -> tuple[int | str, ...]:
    heads = [head.strip() for head in text.split(",")] if text.strip() else []
    return tuple(int(head) if head.removeprefix("-").isdecimal() else head for head in heads)


_SWITCH = Kind("true or false", _is(lambda _: True, bool), _parse_switch, "BOOL")
_FRACTION = Kind("a number in (0, 1]", _is(lambda x: 0 < x <= 1, float, int), float, "F")
_COUNT = Kind("an integer >= 0", _is(lambda n: n >= 0, int), int, "T")
_EVERY = Kind(
    "'epoch' or a positive number of generator steps",
    _check_every,
    lambda text: text if text == "epoch" else int(text),
    "{epoch,N}",
)
_HEADS = Kind("a list of names or indices", _check_heads, _parse_heads, "NAME,...")


def _setting(default: Any, kind: Kind, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True)
class TopKConfig:
    """How top-k training is done. The text beside a field says what it means.

    Raises ConfigError where a value has the wrong type or is out of its range.
    """

    enabled: bool = _setting(True, _SWITCH, "whether top-k is applied; if not, nothing changes")
    gamma: float = _setting(
        0.99, _FRACTION, "factor by which k shrinks each epoch, in (0, 1]; 1 keeps k = B (sec. 3.2)"
    )
    nu: float = _setting(
        0.5, _FRACTION, "smallest k, as a fraction of the batch, in (0, 1] (sec. 3.2)"
    )
    direction: Direction = _setting(
        "auto",
        _choice(Direction),
        "which scores are more realistic; auto reads it from the loss (sec. 3.1 assumes high)",
    )
    gate: Gate = _setting(
        "auto",
        _choice(Gate),
        "where dropped rows lose their gradient: at the score, which is exact in generator steps, "
        "or shielded, which leaves the critic's own gradient as it was in any step (sec. 3.3)",
    )
    reduction: Reduction = _setting(
        "mean",
        _choice(Reduction),
        "mean over the kept rows, for losses that average (sec. 3.3), or sum (sec. 3.1)",
    )
    every: Literal["epoch"] | int = _setting(
        "epoch", _EVERY, "k shrinks each epoch (sec. 3.2), or each N >= 1 generator steps (sec. 4)"
    )
    heads: tuple[str | int, ...] = _setting(
        (),
        _HEADS,
        "outputs of the critic, by name or index, that share one ranking by their average score; "
        "none: the one score output. Use FLAG=-1,0 if the first is negative",
    )
    start_epoch: int = _setting(
        0, _COUNT, "epochs >= 0 that had ended before this run, to resume the decay (sec. 3.2)"
    )

    def __post_init__(self) -> None:
        for name in _FIELDS:
            object.__setattr__(self, name, _checked(name, getattr(self, name), name))

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], path: str = "topk") -> "TopKConfig":
        """Settings from a mapping of field names; errors name the key below `path`."""
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"{path}: found {mapping!r}, expected a mapping; "
                f"write settings below it, such as gamma: {cls.gamma}"
            )
        for key in mapping:
            if key not in _FIELDS:
                raise unknown_name(f"{path}.{key}", "key", str(key), _FIELDS)
        return cls(**{k: _checked(k, value, f"{path}.{k}") for k, value in mapping.items()})

    @classmethod
    def from_args(cls, namespace: argparse.Namespace, prefix: str = "topk") -> "TopKConfig":
        """Settings from what a parser read that `add_arguments` was called on."""
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
    def from_sources(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> "TopKConfig":
        """Settings of `topk run`: a flag beats a TOPK_ variable, which beats the default.

        flags: values by field name, None for a flag that was not given; other names are ignored.
        environ: such as os.environ. A TOPK_ variable that is no setting is an error.
        """
        values = {}
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
        names = ("gamma", "nu", "direction", "reduction", "every")
        return {name: getattr(self, name) for name in names} | {"heads": list(self.heads)}


_FIELDS = {field.name: field for field in dataclasses.fields(TopKConfig)}


def add_arguments(parser: argparse.ArgumentParser, prefix: str = "topk") -> None:
    """Add --topk and --topk-gamma, --topk-nu, ... to a parser; read by `TopKConfig.from_args`."""
    _add_flags(parser, prefix, "store_true", lambda field: field.default)


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
            return kind.parse(text)
        except ValueError:
            message = f"found {text!r}, expected {kind.expected}"
            raise argparse.ArgumentTypeError(message) from None

    return parse


def _flag(name: str, prefix: str = "") -> str:
    if not prefix:
        return "--" + name.replace("_", "-")
    return f"--{prefix}" if name == "enabled" else f"--{prefix}-{name.replace('_', '-')}"


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python number it stands for; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _checked(name: str, value: Any, origin: str) -> Any:
    """The value of setting `name`, validated; `origin` says where the user wrote it."""
    kind: Kind = _FIELDS[name].metadata["kind"]
    try:
        return kind.check(_plain(value))
    except ValueError:
        default = _FIELDS[name].default
        raise ConfigError(
            f"{origin}: found {value!r}, expected {kind.expected}; "
            f"correct it or leave it out (default: {default!r})"
        ) from None


def unknown_name(origin: str, what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a misspelt name at ``origin``, with the nearest of the ``known`` ones."""
    lowered = {word.lower(): word for word in known}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.7)
    guess = f" did you mean {lowered[nearest[0]]!r}?" if nearest else ""
    return ConfigError(f"{origin}: unknown {what};{guess} Known: {', '.join(lowered.values())}")
