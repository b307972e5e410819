"""Files of settings: what they come before and after, their sections, and those of StudioGAN."""

from collections import ChainMap

import pytest
import yaml
from configs import FIELDS, OTHER, as_yaml, config_file, from_file, refusal

from topk_plugin import TopK
from topk_plugin.config import STUDIOGAN, TopKConfig, read_file
from topk_plugin.errors import ConfigError

pytestmark = pytest.mark.usefixtures("in_own_folder")

# StudioGAN's other keys in LOSS that look most like its three for top-k
STUDIOGAN_OTHERS = [
    *["adv_loss", "m_p", "temperature", "lo_rate", "lo_lambda", "gp_lambda", "lecam_lambda"],
    *[f"apply_{it}" for it in ("fm", "wc", "gp", "cr", "lo", "bcr", "zcr", "dra", "maxgp")],
    *["apply_lecam", "apply_r1_reg"],
]


# YAML files


@pytest.mark.parametrize("name", FIELDS)
def test_flag_beats_environment_beats_file_beats_default(name):
    default, (value, text) = getattr(TopKConfig, name), OTHER[name]
    empty = dict.fromkeys(("heads", "plugins", "restore"), "")
    as_text = ({"enabled": "yes"} | empty).get(name, str(default))
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
