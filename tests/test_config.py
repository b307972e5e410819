"""Settings as values, mappings, flags and variables: what is kept, what is refused, what wins."""

import argparse
import dataclasses
import io
from collections import ChainMap, deque

import numpy as np
import pytest
import torch
from configs import FIELDS, OTHER, SWITCHES

from topk_plugin.config import RESERVED_VARIABLES, TopKConfig, add_arguments, add_run_arguments
from topk_plugin.errors import ConfigError


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--lr", type=float, default=1e-4)
    add_arguments(parser)
    return parser


def run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_run_arguments(parser)
    return parser


def test_every_setting_has_another_value_here_and_a_help_text():
    assert list(OTHER) == FIELDS
    for field in dataclasses.fields(TopKConfig):
        assert OTHER[field.name][0] != field.default
        assert field.metadata["help"]
        assert field.metadata["help"] in " ".join(own_parser().format_help().split()) or (
            field.name == "enabled"
        )


# Values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("gamma", bad) for bad in (1.2, 0, 0.0, -0.5, True, "0.9", [0.9], None, float("nan"))],
        ("gamma", float("inf")),
        ("gamma", np.array([0.9])),
        ("gamma", np.True_),
        *[("nu", bad) for bad in (0, 1.0001, False, "half", {})],
        *[("direction", bad) for bad in ("up", "HIGH", None, 1, ["high"])],
        *[("gate", bad) for bad in ("gather", None, np.zeros(3))],
        *[("reduction", bad) for bad in ("none", None, 1)],
        *[("companions", bad) for bad in ("drop", None, True)],
        *[("scope", bad) for bad in ("all", None, True)],
        *[("every", bad) for bad in (0, -1, 1.0, True, "2000", "step", None, np.ones(2))],
        *[("heads", bad) for bad in ("adv", b"adv", 1, None, [1.5], [True], [""], [["a"]], {"a"})],
        *[("start_epoch", bad) for bad in (-1, 1.0, True, "3", None)],
        *[("plugins", bad) for bad in ("bottom-k", b"a", None, 1, [1], [None], [""], {"a"})],
        *[("enabled", bad) for bad in (1, "yes", None, 0.0)],
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(name, value):
    expected = {
        "gamma": "a number in (0, 1]",
        "nu": "a number in (0, 1]",
        "direction": "one of 'auto', 'high', 'low'",
        "gate": "one of 'auto', 'score', 'shielded'",
        "reduction": "one of 'mean', 'sum'",
        "companions": "one of 'auto', 'follow', 'keep'",
        "scope": "one of 'rank', 'global'",
        "every": "'epoch' or a positive number of generator steps",
        "heads": "a list of names or indices",
        "start_epoch": "an integer >= 0",
        "plugins": "a list of names",
        "enabled": "true or false",
    }[name]
    for build, origin in [
        (lambda: TopKConfig(**{name: value}), name),
        (lambda: TopKConfig.from_config({name: value}), f"topk.{name}"),
        (lambda: TopKConfig.from_config({name: value}, path="train.topk"), f"train.topk.{name}"),
    ]:
        with pytest.raises(ConfigError) as error:
            build()
        text = f"{origin}: found {value!r}, expected {expected}; correct it or leave it out"
        assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("gamma", 1, 1.0),
        ("gamma", np.float64(0.75), 0.75),
        ("nu", np.float32(0.25), 0.25),
        ("nu", np.int64(1), 1.0),
        ("every", np.int32(5), 5),
        ("every", "epoch", "epoch"),
        ("every", np.str_("epoch"), "epoch"),
        ("direction", np.str_("low"), "low"),
        ("start_epoch", np.uint8(3), 3),
        ("enabled", np.False_, False),
        ("heads", ["adv", np.int64(-1)], ("adv", -1)),
        ("heads", deque([0]), (0,)),
        ("plugins", [np.str_("bottom-k")], ("bottom-k",)),
        ("plugins", [], ()),
    ],
)
def test_values_are_kept_as_plain_python(name, given, kept):
    value = getattr(TopKConfig(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, tuple):
        assert [type(item) for item in value] == [type(item) for item in kept]


# Mappings


def test_from_config_reads_every_key():
    mapping = {name: value for name, (value, _) in OTHER.items()}
    assert TopKConfig.from_config(mapping) == TopKConfig(**mapping)
    assert TopKConfig.from_config(ChainMap(mapping)) == TopKConfig(**mapping)
    assert TopKConfig.from_config({}) == TopKConfig()


@pytest.mark.parametrize(
    ("key", "guess"), [("gama", "gamma"), ("Gamma", "gamma"), ("head", "heads")]
)
def test_an_unknown_key_is_an_error_with_its_nearest_match(key, guess):
    with pytest.raises(ConfigError) as error:
        TopKConfig.from_config({"nu": 0.5, key: 1})
    known = ", ".join(FIELDS)
    expected = f"topk.{key}: unknown key; did you mean {guess!r}? Known: {known}"
    assert str(error.value) == expected


@pytest.mark.parametrize("key", ["colour", 3])
def test_an_unknown_key_like_no_other_lists_the_known_ones(key):
    with pytest.raises(ConfigError, match=rf"^topk\.{key}: unknown key; Known: enabled, gamma"):
        TopKConfig.from_config({key: 1})


@pytest.mark.parametrize("value", [None, 0.99, "gamma", ["gamma"]])
def test_settings_that_are_no_mapping(value):
    with pytest.raises(ConfigError, match="^topk: found .* expected a mapping; write settings"):
        TopKConfig.from_config(value)


# The flags of an existing codebase


def test_prefixed_flags_default_to_off_and_the_defaults():
    args = own_parser().parse_args([])
    assert TopKConfig.from_args(args) == TopKConfig(enabled=False)
    assert TopKConfig.from_args(own_parser().parse_args(["--topk"])) == TopKConfig()
    assert args.topk_gamma == TopKConfig.gamma  # a codebase that logs its arguments shows it


def test_a_prefixed_switch():
    args = own_parser().parse_args(["--topk", "--no-topk-spare"])
    assert TopKConfig.from_args(args) == TopKConfig(spare=False)
    args = own_parser().parse_args(["--topk", "--topk-spare"])
    assert TopKConfig.from_args(args) == TopKConfig(spare=True)


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in SWITCHES])
def test_each_prefixed_flag_sets_its_field_alone(name):
    value, text = OTHER[name]
    args = own_parser().parse_args(["--topk", f"--topk-{name.replace('_', '-')}={text}"])
    assert TopKConfig.from_args(args) == TopKConfig(**{name: value})


def test_another_prefix():
    parser = argparse.ArgumentParser()
    add_arguments(parser, prefix="top-rows")
    args = parser.parse_args(["--top-rows", "--top-rows-nu", "0.75"])
    assert TopKConfig.from_args(args, prefix="top-rows") == TopKConfig(nu=0.75)


def test_from_args_names_the_flag():
    args = own_parser().parse_args(["--topk", "--topk-gamma", "1.2"])
    with pytest.raises(ConfigError, match=r"^--topk-gamma: found 1\.2, expected .*\(0, 1\]"):
        TopKConfig.from_args(args)
    args = own_parser().parse_args(["--topk-start-epoch=-1"])
    with pytest.raises(ConfigError, match="^--topk-start-epoch: found -1"):
        TopKConfig.from_args(args)


@pytest.mark.parametrize("missing", ["topk", "topk_nu"])
def test_from_args_without_add_arguments(missing):
    args = own_parser().parse_args([])
    delattr(args, missing)
    with pytest.raises(ConfigError, match=rf"{missing!r}.*add_arguments\(parser\)"):
        TopKConfig.from_args(args)


@pytest.mark.parametrize(
    ("name", "text"),
    [("gamma", "fast"), ("every", "2.5"), ("direction", "up"), ("start-epoch", "one")],
)
def test_text_that_cannot_be_read_is_the_parsers_usage_error(name, text):
    for parser, option in [(own_parser(), f"--topk-{name}"), (run_parser(), f"--{name}")]:
        with pytest.raises(argparse.ArgumentError, match=f"found '{text}', expected") as error:
            parser.parse_args([option, text])
        assert option in str(error.value)


# Flags and environment of `topk run`


def test_flags_of_run_are_none_unless_given():
    assert set(vars(run_parser().parse_args([])).values()) == {None}
    assert set(vars(run_parser().parse_args([]))) == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_flag_beats_environment_beats_default(name):
    value, text = OTHER[name]
    default = getattr(TopKConfig, name)
    as_text = {"heads": "", "plugins": "", "restore": ""} | dict.fromkeys(SWITCHES, "yes")
    as_text = as_text.get(name, str(default))
    switch = name in SWITCHES
    given = [f"--no-{name}"] if switch else [f"{flag(name)}={text}"]
    given_default = [f"--{name}"] if switch else [f"{flag(name)}={as_text}"]
    other, variable = TopKConfig(**{name: value}), f"TOPK_{name.upper()}"

    def read(arguments, environ):
        return TopKConfig.from_sources(vars(run_parser().parse_args(arguments)), environ)

    assert read([], {"HOME": "/", variable: text}) == other
    assert read(given, {variable: as_text}) == other
    assert read(given_default, {variable: text}) == TopKConfig()
    assert read([], {}) == TopKConfig()


def test_names_that_are_no_settings_are_ignored_among_flags():
    assert TopKConfig.from_sources({"critic": "model:D", "nu": 0.75}, {}) == TopKConfig(nu=0.75)


@pytest.mark.parametrize(
    ("flags", "environ", "start"),
    [
        ({"gamma": 1.2}, {}, "--gamma: found 1.2, expected a number in (0, 1];"),
        ({"start_epoch": -1}, {}, "--start-epoch: found -1, expected an integer >= 0;"),
        ({}, {"TOPK_GAMMA": "1.2"}, "TOPK_GAMMA: found 1.2, expected a number in (0, 1];"),
        ({}, {"TOPK_NU": "half"}, "TOPK_NU: found 'half', expected a number in (0, 1];"),
        ({}, {"TOPK_NU": "nan"}, "TOPK_NU: found nan, expected a number in (0, 1];"),
        ({}, {"TOPK_NU": ""}, "TOPK_NU: found '', expected a number in (0, 1];"),
        ({}, {"TOPK_ENABLED": "maybe"}, "TOPK_ENABLED: found 'maybe', expected true or false;"),
        ({}, {"TOPK_START_EPOCH": "x"}, "TOPK_START_EPOCH: found 'x', expected an integer >= 0;"),
        ({}, {"TOPK_RESTORE": "20:10"}, "TOPK_RESTORE: found (20, 10), expected two epochs T0:T1"),
        ({}, {"TOPK_RESTORE": "10"}, "TOPK_RESTORE: found (10,), expected two epochs T0:T1"),
        ({"restore": (0, 3)}, {}, "--restore: found (0, 3), expected two epochs T0:T1"),
        ({}, {"TOPK_HEADS": "a,,b"}, "TOPK_HEADS: found ('a', '', 'b'), expected a list of"),
        ({}, {"TOPK_PLUGINS": "a,"}, "TOPK_PLUGINS: found ('a', ''), expected a list of names;"),
        # a wrong variable is reported even where a flag overrides it
        ({"gamma": 0.9}, {"TOPK_GAMMA": "1.2"}, "TOPK_GAMMA: found 1.2"),
    ],
)
def test_errors_name_where_the_value_came_from(flags, environ, start):
    with pytest.raises(ConfigError) as error:
        TopKConfig.from_sources(flags, environ)
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("text", ["1", "true", "YES", "on", "0", "False", "no", "off"])
def test_switch_texts(text):
    config = TopKConfig.from_sources({}, {"TOPK_ENABLED": text})
    assert config.enabled is (text.lower() in ("1", "true", "yes", "on"))


@pytest.mark.parametrize(
    ("variable", "guess"),
    [
        ("TOPK_GAMA", "did you mean 'TOPK_GAMMA'? "),
        ("TOPK_gamma", "did you mean 'TOPK_GAMMA'? "),
        ("TOPK_PLUGIN", "did you mean 'TOPK_PLUGINS'? "),
        ("TOPK_TRACE_PLUGIN", "did you mean 'TOPK_TRACE_PLUGINS'? "),
        ("TOPK_COLOUR", ""),
    ],
)
def test_an_unknown_variable_is_an_error_with_its_nearest_match(variable, guess):
    with pytest.raises(ConfigError) as error:
        TopKConfig.from_sources({}, {variable: "1"})
    start = f"{variable}: unknown environment variable; {guess}Known: TOPK_ENABLED, TOPK_GAMMA"
    assert str(error.value).startswith(start)


def test_reserved_and_foreign_variables_are_left_alone():
    reserved = ["UPSTREAMS", "TRACE_PLUGINS", "DISABLE_PLUGINS", "ACTIVATION"]
    assert {f"TOPK_{name}" for name in reserved} == set(RESERVED_VARIABLES)
    environ = dict.fromkeys((*RESERVED_VARIABLES, "TOPKEK", "GAMMA"), "anything")
    assert TopKConfig.from_sources({}, environ) == TopKConfig()


# Resume


def test_ranking_settings_load_with_weights_only():
    config = TopKConfig(
        gamma=np.float64(0.9),
        every=np.int64(20),
        restore=[np.int64(10), 20],
        heads=["adv", np.int64(1)],
        plugins=["bottom-k"],
    )
    kept = config.ranking_settings()
    assert kept == {
        "gamma": 0.9,
        "nu": 0.5,
        "direction": "auto",
        "reduction": "mean",
        "companions": "auto",
        "every": 20,
        "scope": "rank",
        "restore": [10, 20],
        "heads": ["adv", 1],
        "plugins": ["bottom-k"],
    }
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == kept


def test_frozen_hashable_and_replaceable():
    config = TopKConfig(heads=["adv"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 0.5  # type: ignore[misc]
    assert hash(config) == hash(TopKConfig(heads=("adv",)))
    with pytest.raises(ConfigError, match="^nu: found 2"):
        dataclasses.replace(config, nu=2)
