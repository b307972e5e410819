"""For each setting another value than its default; files of settings, and what is said of them."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from topk_plugin.config import TopKConfig
from topk_plugin.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(TopKConfig)]
SWITCHES = ["enabled", "spare"]  # --NAME and --no-NAME
OTHER = {  # for each setting a value that is not the default, and how a user types it
    "enabled": (False, "no"),
    "gamma": (0.9, "0.9"),
    "nu": (0.25, "0.25"),
    "restore": ((10, 20), "10:20"),
    "direction": ("low", "low"),
    "gate": ("shielded", "shielded"),
    "reduction": ("sum", "sum"),
    "companions": ("follow", "follow"),
    "every": (2000, "2000"),
    "passes": ("all", "all"),
    "scope": ("global", "global"),
    "heads": (("adv", 2, -1), "adv, 2,-1"),
    "spare": (False, "no"),
    "start_epoch": (7, "7"),
    "plugins": (("bottom-k", "mine"), "bottom-k, mine"),
}


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
