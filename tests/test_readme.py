"""The README's example prints what the README says, and its table of settings is complete."""

import dataclasses
import doctest
import re
from pathlib import Path

from topk_plugin import TopKConfig

README = Path(__file__).parents[1] / "README.md"


def test_the_example():
    found = doctest.testfile(str(README), module_relative=False)
    assert found.attempted >= 6
    assert found.failed == 0


def test_the_table_of_settings():
    rows = re.findall(r"^\| `(\w+)` \| `?([\w.]*)`? ?\|", README.read_text(), re.MULTILINE)
    settings = {field.name: field.default for field in dataclasses.fields(TopKConfig)}
    shown = {name: "" if default == () else str(default) for name, default in settings.items()}
    assert dict(rows) == shown | {"enabled": "true"}
