"""What YAML is read, as which values, and what is refused with its place in the file."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from configs import config_file, from_file, refusal
from hypothesis import HealthCheck, given, settings

from topk_plugin.config import TopKConfig, read_file
from topk_plugin.errors import ConfigError

pytestmark = pytest.mark.usefixtures("in_own_folder")

# YAML files

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
        ("restore: 10:20", (10, 20)),  # not 620, to the base of 60
        ("restore: 100:250", (100, 250)),
        ("restore: [10, 20]", (10, 20)),
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
