import argparse
import dataclasses
import io
from collections import ChainMap, deque
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings

from topk_plugin import TopK
from topk_plugin.config import (
    RESERVED_VARIABLES,
    STUDIOGAN,
    TopKConfig,
    add_arguments,
    add_run_arguments,
    read_file,
)
from topk_plugin.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(TopKConfig)]
OTHER = {  # for each setting a value that is not the default, and how a user types it
    "enabled": (False, "no"),
    "gamma": (0.9, "0.9"),
    "nu": (0.25, "0.25"),
    "direction": ("low", "low"),
    "gate": ("shielded", "shielded"),
    "reduction": ("sum", "sum"),
    "companions": ("follow", "follow"),
    "every": (2000, "2000"),
    "heads": (("adv", 2, -1), "adv, 2,-1"),
    "start_epoch": (7, "7"),
    "plugins": (("bottom-k", "mine"), "bottom-k, mine"),
}
# StudioGAN's other keys in LOSS that look most like its three for top-k
STUDIOGAN_OTHERS = [
    *["adv_loss", "m_p", "temperature", "lo_rate", "lo_lambda", "gp_lambda", "lecam_lambda"],
    *[f"apply_{it}" for it in ("fm", "wc", "gp", "cr", "lo", "bcr", "zcr", "dra", "maxgp")],
    *["apply_lecam", "apply_r1_reg"],
]


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


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "enabled"])
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
    as_text = {"enabled": "yes", "heads": "", "plugins": ""}.get(name, str(default))
    switch = name == "enabled"
    given = ["--no-enabled"] if switch else [f"{flag(name)}={text}"]
    given_default = ["--enabled"] if switch else [f"{flag(name)}={as_text}"]
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


# YAML files


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that errors name the file as cfg.yaml


def config_file(text: str | bytes) -> Path:
    path = Path("cfg.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def from_file(text: str | bytes) -> TopKConfig:
    return TopKConfig.from_sources({}, {}, config_file(text))


def refusal(text: str | bytes) -> str:
    """What the error says of a file with this text."""
    path = config_file(text)
    with pytest.raises(ConfigError) as error:
        TopKConfig.from_sources({}, {}, path)
    return str(error.value)


def as_yaml(name: str, value: object) -> str:
    return yaml.safe_dump({name: list(value) if isinstance(value, tuple) else value})


@pytest.mark.parametrize("name", FIELDS)
def test_flag_beats_environment_beats_file_beats_default(name):
    default, (value, text) = getattr(TopKConfig, name), OTHER[name]
    as_text = {"enabled": "yes", "heads": "", "plugins": ""}.get(name, str(default))
    other, same = TopKConfig(**{name: value}), TopKConfig()
    in_file, in_file_default = as_yaml(name, value), as_yaml(name, default)
    variable = f"TOPK_{name.upper()}"
    for content, environ, flags, expected in [
        (in_file, {}, {}, other),
        (in_file, {}, {name: None}, other),  # a flag that was not given
        (in_file, {variable: as_text}, {}, same),
        (in_file, {}, {name: default}, same),
        (in_file, {variable: text}, {name: default}, same),
        (in_file_default, {variable: text}, {}, other),
        (in_file_default, {}, {name: value}, other),
        (in_file, {variable: as_text}, {name: value}, other),
    ]:
        assert TopKConfig.from_sources(flags, environ, config_file(content)) == expected


def test_each_setting_comes_from_its_own_source():
    path = config_file("gamma: 0.9\nnu: 0.25\nevery: 7\n")
    config = TopKConfig.from_sources({"nu": 0.75}, {"TOPK_EVERY": "9"}, path)
    assert config == TopKConfig(gamma=0.9, nu=0.75, every=9)


def test_a_wrong_file_is_reported_even_where_a_flag_overrides_it():
    path = config_file("gamma: 1.2")
    with pytest.raises(ConfigError, match=r"^cfg\.yaml: gamma: found 1\.2"):
        TopKConfig.from_sources({"gamma": 0.9}, {"TOPK_GAMMA": "0.9"}, path)


def test_read_file_gives_only_what_the_file_says():
    assert read_file(config_file("nu: 1\nheads: [0, adv]\n")) == {"nu": 1.0, "heads": (0, "adv")}
    assert read_file(config_file("{}")) == {}
    assert read_file(config_file("topk: {}\n")) == {}
    assert read_file(config_file("LOSS: {apply_topk: false}")) == {"enabled": False}


SETTINGS = {
    "enabled": st.booleans(),
    "gamma": st.floats(0, 1, exclude_min=True),
    "nu": st.floats(0, 1, exclude_min=True),
    "direction": st.sampled_from(["auto", "high", "low"]),
    "every": st.just("epoch") | st.integers(1),
    "heads": st.lists(st.text(min_size=1) | st.integers()),
    "plugins": st.lists(st.text(min_size=1)),
    "start_epoch": st.integers(0),
}
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.fixed_dictionaries({}, optional=SETTINGS), st.sampled_from(["plain", "topk"]))
@in_one_folder
def test_a_file_that_a_program_wrote_is_read_back(values, form):
    document = values if form == "plain" else {"model": "dcgan", "topk": values}
    assert from_file(yaml.safe_dump(document)) == TopKConfig(**values)


YAML_PIECES = [
    "gamma",
    "topk",
    "LOSS",
    ": ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
]
YAML_PIECES += [
    "<<",
    "? ",
    "'",
    '"',
    "|",
    ">",
    "#",
    "---\n",
    "...\n",
    "%",
    "\t",
    "0.9",
    "N/A",
    "!x ",
]
YAML_PIECES += ["!!bool ", "!!timestamp ", "!!int ", "!!map ", "2024-02-30", "\0", "\u2028", "é"]


@given(st.lists(st.sampled_from(YAML_PIECES), max_size=12).map("".join) | st.text() | st.binary())
@in_one_folder
def test_any_content_is_read_or_refused(content):
    try:
        values = read_file(config_file(content))
    except ConfigError as error:
        assert str(error).startswith("cfg.yaml: ")  # noqa: PT017
    else:
        TopKConfig(**values)


# What YAML makes of values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("gamma: 1", 1.0),
        ("gamma: .5", 0.5),
        ("gamma: 1.0e-3", 0.001),
        ("nu: 1.", 1.0),
        ("every: epoch", "epoch"),
        ("every: 'epoch'", "epoch"),
        ("every: 2_000", 2000),
        ("heads: [0, adv, -1]", (0, "adv", -1)),
        ("heads:\n- adv\n- 1\n", ("adv", 1)),
        ("heads: ['0']", ("0",)),
        ("heads: []", ()),
        ("plugins: [bottom-k]", ("bottom-k",)),
        ("enabled: no", False),
        ("enabled: On", True),
        ("direction: high", "high"),
        ("start_epoch: 12  # epochs", 12),
        ("\ufeffgamma: 0.5", 0.5),  # as some editors begin a file
        ("---\ngamma: 0.5\n...\n", 0.5),
        ("gamma: 0.5\r\n", 0.5),
    ],
)
def test_values_that_yaml_reads(text, value):
    ((_, read),) = read_file(config_file(text)).items()
    assert read == value
    assert type(read) is type(value)


TEXT = ". This is text: write it without quotes"


@pytest.mark.parametrize(
    ("text", "found", "advice"),
    [
        ("gamma: 1e-3", "'1e-3'", f"{TEXT}, and an exponent as in 1.0e-3"),
        ("gamma: '0.9'", "'0.9'", f"{TEXT}, and an exponent as in 1.0e-3"),
        ("gamma: fast", "'fast'", ""),
        ("gamma: '1.2'", "'1.2'", ""),
        ("gamma: 0,9", "'0,9'", ""),
        ("gamma: .nan", "nan", ""),
        ("gamma: nan", "'nan'", ""),
        ("gamma: .inf", "inf", ""),
        ("gamma: true", "True", ""),
        ("gamma: yes", "True", ""),
        ("gamma: null", "None", ""),
        ("gamma:", "None", ""),
        ("gamma: ~", "None", ""),
        ("gamma: N/A", "'N/A'", ""),
        ("gamma: [0.9]", "[0.9]", ""),
        ("gamma: 2024-02-03", "datetime.date(2024, 2, 3)", ""),
        ("gamma: !env GAMMA", "ScalarNode(tag='!env', value='GAMMA')", ""),
        ("every: '200'", "'200'", TEXT),
        ("every: 1e3", "'1e3'", ""),
        ("every: 200.0", "200.0", ""),
        ("every: null", "None", ""),
        ("every: true", "True", ""),
        ("start_epoch: '3'", "'3'", TEXT),
        ("start_epoch: false", "False", ""),
        ("enabled: 'yes'", "'yes'", TEXT),
        ("enabled: 1", "1", ""),
        ("enabled:", "None", ""),
        ("direction: on", "True", ""),
        ("heads: adv", "'adv'", ""),
        ("heads: {adv: 1}", "{'adv': 1}", ""),
        ("heads: [0.5]", "[0.5]", ""),
        ("heads: [yes]", "[True]", ""),
        ("heads:", "None", ""),
        ("plugins: bottom-k", "'bottom-k'", ""),
        ("plugins: [1]", "[1]", ""),
        ("plugins: [null]", "[None]", ""),
    ],
)
def test_values_that_yaml_reads_as_something_else(text, found, advice):
    name = text.partition(":")[0]
    message = refusal(text)
    assert message.startswith(f"cfg.yaml: {name}: found {found}, expected ")
    assert message.endswith(f"(default: {getattr(TopKConfig, name)!r}){advice}")
    section = refusal("topk:\n  " + text)
    assert section == message.replace("cfg.yaml: ", "cfg.yaml: topk.", 1)


# Files that are no settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *[
            (text, "found an empty file, expected a mapping; write lines such as key: value")
            for text in ("", "\n", "# gamma: 0.9\n", "---\n", "null", "~\n")
        ],
        (
            "gamma:0.9",
            "found 'gamma:0.9', expected a mapping; write lines such as key: value, with",
        ),
        ("- gamma: 0.9", "found [{'gamma': 0.9}], expected a mapping; write"),
        ("0.99", "found 0.99, expected a mapping; write"),
        ("false", "found False, expected a mapping; write"),
        ("[]", "found [], expected a mapping; write"),
        ("&a [*a]", "found [[[[[[[...]]]]]]], expected a mapping"),
        ("!x {gamma: 0.9}", "found MappingNode(t"),
        ("gamma: 0.9\n---\nnu: 0.5\n", "found 2 documents, expected one; remove the others"),
        ("---\ngamma: 0.9\n---\n---\n", "found 3 documents, expected one; remove"),
        ("gamma: [0.9\nnu: 0.5", "line 2, column 3: found invalid YAML (while parsing a flow seq"),
        ("gamma: 0.9\nnu: a: b", "line 2, column 6: found invalid YAML (mapping values are not"),
        ("nu: 0.5\n\tgamma: 0.9", "line 2, column 1: found invalid YAML (while scanning"),
        ("nu: 0.5\n gamma: 0.9", "line 2, column 7: found invalid YAML (mapping values"),
        ("nu: *other", "line 1, column 5: found invalid YAML (found undefined alias 'other')"),
        ("nu: 0.5\ngamma: \0", "line 2, column 8: found invalid YAML (character '\\x00')"),
        ("\0", "line 1, column 1: found invalid YAML (character '\\x00')"),
        ("? [a]\n: 1", "line 1, column 3: found invalid YAML (while constructing a mapping, found"),
        ("a: 1\nb: 2024-02-30", "line 2, column 4: found invalid YAML ('2024-02-30' is no timest"),
        ("a: !!bool maybe", "line 1, column 4: found invalid YAML ('maybe' is no bool)"),
        ("a: !!int ''", "line 1, column 4: found invalid YAML ('' is no int)"),
        ("a: !!timestamp soon", "line 1, column 4: found invalid YAML ('soon' is no timestamp)"),
        ("[" * 1000, "found values nested too deeply"),
        (b"gamma: 0.9 # \xe9", "found byte 0xe9 at offset 13, expected text in UTF-8; save"),
        ("gamma: 0.9".encode("utf-16"), "found byte 0xff at offset 0, expected text in UTF-8"),
    ],
)
def test_a_file_that_is_no_mapping(content, message):
    assert refusal(content).startswith(f"cfg.yaml: {message}")


@pytest.mark.parametrize(
    ("text", "key", "line", "column", "first"),
    [
        ("gamma: 0.9\nnu: 0.5\ngamma: 0.8\n", "gamma", 3, 1, 1),
        ("gamma: 0.9\nnu: 0.5\n'gamma': 0.9\n", "gamma", 3, 1, 1),
        ("{nu: 0.5, nu: 0.5}", "nu", 1, 11, 1),
        ("topk:\n  nu: 0.5\n  nu: 0.6\n", "nu", 3, 3, 2),
        ("topk: {nu: 0.5}\nother: 1\ntopk: {nu: 0.6}\n", "topk", 3, 1, 1),
        ("topk: {nu: 0.5}\nother:\n- {a: 1}\n- a: 1\n  a: 2\n", "a", 5, 3, 4),
        ("LOSS:\n  apply_topk: true\n  apply_topk: false\n", "apply_topk", 3, 3, 2),
        ("LOSS: {apply_topk: true}\nLOSS: {apply_topk: false}\n", "LOSS", 2, 1, 1),
    ],
)
def test_a_key_given_twice(text, key, line, column, first):
    where = f"cfg.yaml: line {line}, column {column}: found invalid YAML "
    assert refusal(text).startswith(f"{where}(key {key!r} a second time, first in line {first})")


@pytest.mark.parametrize(
    "text",
    [
        "base: &base {gamma: 0.9, nu: 0.25}\ntopk: {<<: *base, gamma: 0.8}",
        "base: &base {gamma: 0.9, nu: 0.25}\ntopk: {gamma: 0.8, <<: *base}",
        # merged from a mapping that itself overrides what it merged
        "a: {b: &b {<<: {gamma: 0.9}, gamma: 0.8}}\ntopk: {<<: *b, nu: 0.25}",
    ],
)
def test_a_merged_key_is_no_key_given_twice(text):
    assert from_file(text) == TopKConfig(gamma=0.8, nu=0.25)


def test_files_that_cannot_be_read():
    Path("folder").mkdir()
    for name, problem in [("no.yaml", "No such file"), ("folder", "Is a directory")]:
        with pytest.raises(ConfigError) as error:
            TopKConfig.from_sources({}, {}, Path(name))
        message = str(error.value)
        assert message.startswith(f"{name}: found no file to read ({problem}")
        assert "expected a YAML file; correct the path" in message


def test_a_file_without_permission(monkeypatch):
    path = config_file("gamma: 0.9")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)  # root, as in a container, may read any file
    with pytest.raises(ConfigError, match=r"^cfg\.yaml: found no file to read \(Permission denied"):
        read_file(path)


# The sections of a file


@pytest.mark.parametrize(
    ("text", "key", "guess"),
    [
        ("gama: 0.9", "gama", "gamma"),
        ("nu: 0.5\nGamma: 0.9", "Gamma", "gamma"),
        ("Topk: {nu: 0.5}", "Topk", "topk"),
        ("loss: {apply_topk: true}", "loss", "LOSS"),
        ("plugin: [bottom-k]", "plugin", "plugins"),
        ("colour: 1", "colour", None),
        ("3: 1", "3", None),
        ("topk: {gama: 0.9}", "topk.gama", "gamma"),
        ("topk: {topk_gamma: 0.9}", "topk.topk_gamma", None),
        ("topk: {LOSS: {apply_topk: true}}", "topk.LOSS", None),
        ("topk: {null: 1}", "topk.None", None),
    ],
)
def test_an_unknown_key_of_a_file(text, key, guess):
    message = refusal(text)
    asked = f" did you mean {guess!r}?" if guess else ""
    assert message.startswith(f"cfg.yaml: {key}: unknown key;{asked} Known: enabled, gamma, nu, ")
    assert message.endswith(", topk, LOSS") is not key.startswith("topk.")


def test_only_the_section_topk_is_read_of_a_file_of_others():
    text = """
    gamma: 0.1          # of a learning rate
    plugins: {wandb: on}
    started: 2024-02-03
    data: !include data.yaml
    LOSS: {name: hinge, topk_weight: 3}
    topk: {gamma: 0.9, heads: [adv]}
    """
    assert from_file(text) == TopKConfig(gamma=0.9, heads=("adv",))
    assert from_file("topk: {nu: 1}\nLOSS: hinge") == TopKConfig(nu=1)


@pytest.mark.parametrize(("value", "found"), [("", None), ("0.9", 0.9), ("[gamma]", ["gamma"])])
def test_a_section_that_is_no_mapping(value, found):
    text = f"found {found!r}, expected a mapping; write settings below it, such as "
    assert refusal(f"topk: {value}") == f"cfg.yaml: topk: {text}gamma: 0.99"
    assert refusal(f"LOSS: {value}") == f"cfg.yaml: LOSS: {text}apply_topk: false"


@pytest.mark.parametrize("key", STUDIOGAN)
def test_a_section_topk_and_studiogans_contradict(key):
    message = refusal(f"topk: {{nu: 0.5}}\nLOSS: {{adv_loss: hinge, {key}: false}}")
    expected = f"cfg.yaml: found a section topk and LOSS.{key}, expected one of the two; remove"
    assert message == f"{expected} topk, or {key} from LOSS"


# StudioGAN's files


def studiogan_file(**loss: object) -> str:
    model = {"backbone": "resnet", "attn_g_loc": ["N/A"]}
    others = dict.fromkeys(STUDIOGAN_OTHERS, "N/A")
    return yaml.safe_dump({"DATA": {"name": "CIFAR10"}, "MODEL": model, "LOSS": others | loss})


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        (
            {"apply_topk": True, "topk_gamma": 0.9, "topk_nu": 0.25},
            TopKConfig(gamma=0.9, nu=0.25),
        ),
        ({"apply_topk": True, "topk_gamma": 1, "topk_nu": 1}, TopKConfig(gamma=1.0, nu=1.0)),
        ({"apply_topk": False}, TopKConfig(enabled=False)),
        ({"apply_topk": False, "topk_gamma": "N/A"}, TopKConfig(enabled=False)),
        (
            {"apply_topk": False, "topk_gamma": "N/A", "topk_nu": "N/A"},
            TopKConfig(enabled=False),
        ),
    ],
)
def test_a_studiogan_file(loss, config):
    text = studiogan_file(**loss)
    assert from_file(text) == config
    mapping = yaml.safe_load(text)
    assert TopKConfig.from_config(mapping) == config
    assert TopKConfig.from_config(ChainMap(mapping)) == config
    assert TopK.from_config(mapping).config == config


def test_flag_and_environment_beat_a_studiogan_file():
    path = config_file(studiogan_file(apply_topk=True, topk_gamma=0.9, topk_nu=0.25))
    config = TopKConfig.from_sources({"nu": 0.75}, {"TOPK_GAMMA": "0.5"}, path)
    assert config == TopKConfig(gamma=0.5, nu=0.75)
    path = config_file(studiogan_file(apply_topk=False))
    assert TopKConfig.from_sources({"enabled": True}, {}, path) == TopKConfig()


FRACTION = "a number in (0, 1]"
OFF = "'N/A' or nothing while apply_topk is"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({}, ": found no apply_topk, expected it to turn top-k on or off; write apply_topk: true"),
        ({"topk_gamma": "N/A", "topk_nu": "N/A"}, ": found no apply_topk, expected it to turn"),
        # on, without its numbers
        (
            {"apply_topk": True},
            f".topk_gamma: found nothing, expected {FRACTION}; write one, such as "
            "topk_gamma: 0.99, or apply_topk: false",
        ),
        (
            {"apply_topk": True, "topk_gamma": 0.9},
            f".topk_nu: found nothing, expected {FRACTION}; write one, such as topk_nu: 0.5, or",
        ),
        (
            {"apply_topk": True, "topk_gamma": "N/A", "topk_nu": 0.5},
            f".topk_gamma: found 'N/A', expected {FRACTION}; write one, such as topk_gamma: 0.99",
        ),
        (
            {"apply_topk": True, "topk_gamma": 0.9, "topk_nu": "N/A"},
            f".topk_nu: found 'N/A', expected {FRACTION}; write one, such as topk_nu: 0.5, or",
        ),
        # on, with wrong ones: StudioGAN itself takes any
        *[
            (
                {"apply_topk": True, "topk_gamma": 0.9, "topk_nu": bad},
                f".topk_nu: found {bad!r}, expected {FRACTION}; write one",
            )
            for bad in (0, 0.0, 1.5, -1, True, None, "0.5", "1e-3", float("nan"), [0.5])
        ],
        # off, yet numbers
        *[
            (
                {"apply_topk": False, key: found},
                f".{key}: found {found!r}, expected {OFF} false; write apply_topk: true, or "
                f"remove {key}",
            )
            for key in ("topk_gamma", "topk_nu")
            for found in (0.9, 7, None, "n/a", [])
        ],
        (
            {"topk_gamma": 0.9, "topk_nu": 0.5},
            f".topk_gamma: found 0.9, expected {OFF} missing; write apply_topk: true, or",
        ),
        ({"topk_nu": 0.5}, f".topk_nu: found 0.5, expected {OFF} missing; write"),
        # neither on nor off
        *[
            (
                {"apply_topk": bad, "topk_gamma": 0.9, "topk_nu": 0.5},
                f".apply_topk: found {bad!r}, expected true or false; write one of them",
            )
            for bad in (1, 0, "true", "N/A", None, 0.5, [True])
        ],
        # misspelt
        *[
            ({bad: True}, f".{bad}: unknown key; did you mean {guess!r}? Known: apply_topk, ")
            for bad, guess in [
                ("aply_topk", "apply_topk"),
                ("apply_top_k", "apply_topk"),
                ("apply_tpok", "apply_topk"),
                ("Apply_TopK", "apply_topk"),
                ("applytopk", "apply_topk"),
                ("apply-topk", "apply_topk"),
                ("topk_gama", "topk_gamma"),
                ("tpk_gamma", "topk_gamma"),
                ("top_k_nu", "topk_nu"),
                ("tok_nu", "topk_nu"),
            ]
        ],
        ({"use_topk": True}, ".use_topk: unknown key; Known: apply_topk, topk_gamma, topk_nu"),
        ({"topk": True}, ".topk: unknown key; "),
        # also where the rest is complete
        (
            {"apply_topk": True, "topk_gamma": 0.9, "topk_nu": 0.5, "topk_gama": 0.8},
            ".topk_gama: unknown key; did you mean 'topk_gamma'?",
        ),
    ],
)
def test_a_studiogan_file_that_is_wrong(loss, message):
    text = studiogan_file(**loss)
    assert refusal(text).startswith(f"cfg.yaml: LOSS{message}")
    for read in (TopKConfig.from_config, TopK.from_config):
        with pytest.raises(ConfigError) as error:
            read(yaml.safe_load(text))
        assert str(error.value).startswith(f"topk.LOSS{message}")


@pytest.mark.parametrize("name", FIELDS)
def test_settings_beside_studiogans_are_refused(name):
    value = OTHER[name][0]
    message = refusal(as_yaml(name, value) + studiogan_file(apply_topk=False))
    assert message.startswith(f"cfg.yaml: {name}: found ")
    assert message.endswith(", expected no settings beside LOSS; remove it or LOSS")


# Resume


def test_ranking_settings_load_with_weights_only():
    config = TopKConfig(
        gamma=np.float64(0.9), every=np.int64(20), heads=["adv", np.int64(1)], plugins=["bottom-k"]
    )
    kept = config.ranking_settings()
    assert kept == {
        "gamma": 0.9,
        "nu": 0.5,
        "direction": "auto",
        "reduction": "mean",
        "companions": "auto",
        "every": 20,
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
