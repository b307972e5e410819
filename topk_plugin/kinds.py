"""What values a setting takes: how they are checked, and parsed from the text of a flag."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args


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


def choice(literal: Any) -> Kind:
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


def _list_of(check_item: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def check(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise ValueError
        return tuple(check_item(plain(item)) for item in value)

    return check


_check_name = _is(bool, str)  # not empty


def _check_head(value: Any) -> int | str:
    return (_check_name if isinstance(value, str) else _is(lambda _: True, int))(value)


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def _parse_heads(text: str) -> tuple[int | str, ...]:
    names = _parse_names(text)
    return tuple(int(name) if name.removeprefix("-").isdecimal() else name for name in names)


def _check_restore(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = _parse_restore(value)
    epochs = _list_of(_is(lambda epoch: epoch >= 1, int))(value)
    if epochs and not (len(epochs) == 2 and epochs[0] < epochs[1]):
        raise ValueError
    return epochs


def _parse_restore(text: str) -> tuple[int, ...]:
    return tuple(int(epoch) for epoch in text.split(":")) if text.strip() else ()


SWITCH = Kind("true or false", _is(lambda _: True, bool), _parse_switch, "BOOL")
FRACTION = Kind("a number in (0, 1]", _is(lambda x: 0 < x <= 1, float, int), float, "F")
COUNT = Kind("an integer >= 0", _is(lambda n: n >= 0, int), int, "T")
EVERY = Kind(
    "'epoch' or a positive number of generator steps",
    _check_every,
    lambda text: text if text == "epoch" else int(text),
    "{epoch,N}",
)
HEADS = Kind("a list of names or indices", _list_of(_check_head), _parse_heads, "NAME,...")
RESTORE = Kind(
    "two epochs T0:T1 with 1 <= T0 < T1 (or a list of them)",
    _check_restore,
    _parse_restore,
    "T0:T1",
)
NAMES = Kind("a list of names", _list_of(_check_name), _parse_names, "NAME,...")


def plain(value: Any) -> Any:
    """A NumPy scalar as the Python number it stands for; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value
