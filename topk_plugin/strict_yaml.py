"""YAML files, read strictly: what PyYAML would pass over in silence is an error."""

import reprlib
from pathlib import Path
from typing import Any

import yaml

from topk_plugin.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which PyYAML keeps the last; says where a bad value stands."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # not when values are constructed: by then merges (<<) have put keys twice into a node
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a mapping cannot be a key: refused when it is constructed
            name = (key.tag, key.value)
            if name in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} a second time, first in line {lines[name]}",
                    problem_mark=key.start_mark,
                )
            lines[name] = key.start_mark.line + 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        # 10:20 is a pair to its reader; YAML 1.1 takes it for 620, by a base of 60
        if kind is yaml.ScalarNode and ":" in value and tag.endswith((":int", ":float")):
            return "tag:yaml.org,2002:str"
        return tag

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # such as the date 2024-02-30
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{node.value!r} is no {kind}", problem_mark=node.start_mark
            ) from None


# Tags of other programs, in sections that are not ours; no setting accepts such a node.
_Loader.add_constructor(None, lambda loader, node: node)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a UTF-8 file of one YAML document holds; {} where the file says so.

    Raises ConfigError where the file cannot be read, is no valid YAML, gives a key twice, is
    empty, holds several documents, or something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: found no file to read ({error.strerror}), expected a YAML file; "
            "correct the path or its permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: found byte 0x{error.object[error.start]:02x} at offset {error.start}, "
            "expected text in UTF-8; save the file as UTF-8"
        ) from None
    try:
        documents = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        line, column, problem = _explain(error, text)
        raise ConfigError(
            f"{path}: line {line}, column {column}: found invalid YAML ({problem}), expected lines "
            "such as key: value; correct it there"
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{path}: found values nested too deeply, or merged into themselves, expected a "
            "mapping; remove the nesting"
        ) from None
    if len(documents) > 1:
        raise ConfigError(
            f"{path}: found {len(documents)} documents, expected one; remove the others, "
            "which begin with ---"
        )
    if documents in ([], [None]):
        raise ConfigError(
            f"{path}: found an empty file, expected a mapping; write lines such as key: value"
        )
    if not isinstance(documents[0], dict):
        raise ConfigError(
            f"{path}: found {reprlib.repr(documents[0])}, expected a mapping; write lines such as "
            "key: value, with a space after the colon"
        )
    return documents[0]


def _explain(error: yaml.YAMLError, text: str) -> tuple[int, int, str]:
    """Line and column, both from 1, of a fault in `text`, and what it is."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n"), error.position - before.rfind("\n") - 1
        return line + 1, column + 1, f"character {chr(error.character)!r}"
    assert isinstance(error, yaml.MarkedYAMLError)
    assert error.problem_mark is not None
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    return error.problem_mark.line + 1, error.problem_mark.column + 1, problem
