"""A new text from a text and source rules, by Python's ``ast`` with exact positions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from topk_plugin.errors import UnsupportedUpstream
from topk_plugin.source.rules import IMPORT, Argument, Enclose, Insert, Place, Replace, Rule
from topk_plugin.source.text import digest, lines_of


@dataclass(frozen=True)
class Rewritten:
    """A text with its edits."""

    text: str
    lines: tuple[int, ...]  # for each line the one in the original that it is, or stands beside
    applied: tuple[Rule, ...]


@dataclass
class _Edits:
    """What is put where, in the original's lines and UTF-8 columns, both from 0."""

    # ((line, column), (line, column)) of what goes, and what comes
    spans: list[tuple[tuple[int, int], tuple[int, int], str]] = field(default_factory=list)
    rows: dict[int, list[str]] = field(default_factory=dict)  # whole lines, before that line


def rewritten(source: str, rules: Iterable[Rule], name: str, force: bool = False) -> Rewritten:
    """``source`` with the edits of ``rules``, which all are of this file.

    Args:
        name: of the file, for errors.
        force: edit also where a digest differs.

    Raises:
        UnsupportedUpstream: it cannot be parsed, or a place is not there, or not the one meant.
    """
    tree = _parse(source, name)
    lines = lines_of(source)
    newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    edits, applied = _Edits(), []
    needs_import = False
    for rule in rules:
        if isinstance(rule, Replace):
            found = list(_replacements(rule, tree, lines))
            needs_import |= bool(found) and _says_topk(rule.by)
        elif isinstance(rule, Argument):
            found = list(_arguments(rule, tree, lines))
        else:
            node, statement = _find(rule.place, tree, lines, name, force)
            if isinstance(rule, Enclose):
                start, end = _span(node)
                found = [(start, start, f"{rule.by}("), (end, end, ")")]
                needs_import |= _says_topk(rule.by)
            else:
                row, indent = _row(rule, statement, lines, name)
                found = []
                edits.rows.setdefault(row, []).append(f"{indent}{rule.code}{newline}")
                needs_import |= _says_topk(rule.code)
        edits.spans += found
        if found or isinstance(rule, Insert):
            applied.append(rule)
    if needs_import:
        edits.rows.setdefault(_import_row(tree), []).insert(0, IMPORT + newline)
    return _edited(lines, edits, tuple(applied), newline)


def _says_topk(code: str) -> bool:
    if code.startswith(IMPORT):  # by another name
        return False
    return re.search(r"(?<![\w.])topk\b", code) is not None


def _parse(source: str, name: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UnsupportedUpstream(
            f"{name}: found a file that this Python cannot read ({error}); expected Python 3"
        ) from None


def _edited(lines: list[str], edits: _Edits, applied: tuple[Rule, ...], newline: str) -> Rewritten:
    out = [line.encode() for line in lines]
    # from the end, so that positions before it stay; of two at one place the later one is inner
    for (row, column), (last, end), new in sorted(
        edits.spans, key=lambda span: span[:2], reverse=True
    ):
        tail = out[last][end:]
        out[row] = out[row][:column] + new.encode() + tail
        for gone in range(row + 1, last + 1):
            out[gone] = b""
    texts: list[str] = []
    numbers: list[int] = []
    for row in range(len(out) + 1):
        # what ends a loop's body comes before what follows the loop
        for line in sorted(edits.rows.get(row, ()), key=_indent, reverse=True):
            if texts and not texts[-1].endswith(("\n", "\r")):
                texts[-1] += newline
                line = line.removesuffix(newline)  # the file ended without one
            texts.append(line)
            numbers.append(min(row + 1, len(out)))
        if row < len(out) and out[row]:
            texts.append(out[row].decode())
            numbers.append(row + 1)
    return Rewritten("".join(texts), tuple(numbers), applied)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


_SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _scopes(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _SCOPES):
            yield f"{prefix}{node.name}", node
            yield from _scopes(node, f"{prefix}{node.name}.")
        else:
            yield from _scopes(node, prefix)


def _own(node: ast.AST, statement: ast.stmt | None = None) -> Iterator[tuple[ast.AST, ast.stmt]]:
    """What is in a scope, without scopes in it, each with its innermost statement."""
    if statement is None and isinstance(node, ast.stmt):
        statement = node  # of the bases of a class, and the defaults of a function
    for child in ast.iter_child_nodes(node):
        inner = child if isinstance(child, ast.stmt) else statement
        if inner is not None:
            yield child, inner
        if not isinstance(child, _SCOPES):
            yield from _own(child, inner)


def _find(
    place: Place, tree: ast.Module, lines: list[str], name: str, force: bool
) -> tuple[Any, Any]:
    """The node of a place, and its statement."""
    where = f"{name}: {place.scope or 'the module'}"
    scopes = [node for qualname, node in _scopes(tree) if qualname == place.scope]
    if place.scope and len(scopes) != 1:
        what = f"{len(scopes)} functions {place.scope}" if scopes else f"no {place.scope}"
        raise UnsupportedUpstream(f"{name}: found {what}, expected one")
    scope: Any = scopes[0] if place.scope else tree
    loops = {"for": ast.For, "while": ast.While}
    if place.at == "def":
        found = [(scope, scope)]
    elif place.at == "import":
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = [(node, node) for node in imports[-1:]]
    elif place.at in loops:
        found = [(node, st) for node, st in _own(scope) if isinstance(node, loops[place.at])]
    else:
        found = [
            (node, statement)
            for node, statement in _own(scope)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == place.at
        ]
    kinds = {"for": "for loops", "while": "while loops", "import": "imports"}
    what = kinds.get(place.at, f"calls of {place.at}")
    if len(found) != place.of:
        raise UnsupportedUpstream(
            f"{where}: found {len(found) or 'no'} {what}, expected {place.of}"
        )
    found.sort(key=lambda pair: _span(pair[0]))
    node, statement = found[place.nth - 1]
    present = digest(segment(statement, lines))
    if place.digest and present != place.digest and not force:
        raise UnsupportedUpstream(
            f"{name}, line {statement.lineno}: found {place.at} in {place.scope or 'the module'} "
            "in a statement that differs from the one that the rule was written for "
            f"(digest {present}, expected {place.digest})"
        )
    return node, statement


def segment(node: Any, lines: list[str]) -> str:
    """The text of a statement; of a compound one its first line alone."""
    (row, column), (last, end) = _span(node)
    body = getattr(node, "body", None)
    if isinstance(body, list):
        last = max(row, body[0].lineno - 2)
        end = len(lines[last].encode())
    parts = [line.encode() for line in lines[row : last + 1]]
    parts[-1] = parts[-1][:end]
    parts[0] = parts[0][column:]
    return b"".join(parts).decode()


def _span(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno - 1, node.col_offset), (node.end_lineno - 1, node.end_col_offset)


def _row(rule: Insert, statement: Any, lines: list[str], name: str) -> tuple[int, str]:
    """Before which line the new one goes, and its indentation."""
    beside = statement
    if rule.where in ("first", "last"):
        body = statement.body
        beside = body[-1] if rule.where == "last" else body[0]
        if rule.where == "first" and isinstance(statement, _SCOPES) and _is_text(beside):
            beside = body[1] if len(body) > 1 else beside  # a docstring stays first
    first = min([beside.lineno, *(d.lineno for d in getattr(beside, "decorator_list", ()))]) - 1
    row = first if rule.where in ("first", "before") else beside.end_lineno
    indent = lines[first].encode()[: beside.col_offset].decode()
    rest = lines[row - 1].encode()[beside.end_col_offset :].decode() if row != first else ""
    if indent.strip() or (rest.strip() and not rest.lstrip().startswith("#")):
        raise UnsupportedUpstream(
            f"{name}, line {first + 1}: found several statements on a line, expected one a line"
        )
    return row, indent


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _import_row(tree: ast.Module) -> int:
    """Before which line an import goes: after the docstring and what is from the future."""
    row = 0
    for node in tree.body:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not future and not (node is tree.body[0] and _is_text(node)):
            return node.lineno - 1 if not isinstance(node, _SCOPES) else row
        row = node.end_lineno or 0
    return row


def _replacements(
    rule: Replace, tree: ast.Module, lines: list[str]
) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    """The edits of a rule; what lies between the parts that stay is put anew."""
    pattern: Any = ast.parse(rule.find).body[0]
    if isinstance(pattern, ast.Expr):
        pattern = pattern.value
    before, wild, after = re.match(r"(.*?)(\b_\b|$)(.*)", rule.by, re.DOTALL).groups()  # type: ignore[union-attr]
    for node in _nodes(rule.scope, tree):
        kept: list[ast.AST] = []
        if not _matches(pattern, node, kept):
            continue
        start, end = _span(node)
        if not wild:
            yield start, end, rule.by
            continue
        if before:
            yield start, start, before
        yield _closed(kept[0], node, lines), end, after


def _nodes(scope: str | None, tree: ast.Module) -> Iterator[ast.AST]:
    """What is in a scope, or in the whole file."""
    if scope is None:
        yield from ast.walk(tree)
    else:
        found = [node for qualname, node in _scopes(tree) if qualname == scope] if scope else [tree]
        for one in found:
            yield from (node for node, _ in _own(one))


def _arguments(
    rule: Argument, tree: ast.Module, lines: list[str]
) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    """The edits of a rule."""
    name = rule.code.partition("=")[0]
    for node in _nodes(rule.scope, tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != rule.call:
            continue
        if any(keyword.arg == name for keyword in node.keywords):
            continue
        row, column = _span(node)[1]
        last = max([*node.args, *(k.value for k in node.keywords)], key=_end, default=None)
        comma = ", " if last is not None else ""
        if last is not None and b"," in lines[row].encode()[_end(last)[1] : column - 1]:
            comma = " "  # a trailing one
        yield (row, column - 1), (row, column - 1), f"{comma}{rule.code}"


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno - 1, node.end_col_offset


def _closed(part: Any, node: Any, lines: list[str]) -> tuple[int, int]:
    """Where the first part of ``node`` ends, with the brackets that opened before it."""
    start, (row, column) = _span(part)
    first = lines[node.lineno - 1].encode()
    depth = 0 if start[0] != node.lineno - 1 else first[node.col_offset : start[1]].count(b"(")
    while depth:
        at = lines[row].encode().find(b")", column)
        if at < 0:
            row, column = row + 1, 0
        else:
            column, depth = at + 1, depth - 1
    return row, column


def _matches(pattern: Any, node: Any, kept: list[ast.AST]) -> bool:
    if isinstance(pattern, ast.Name) and pattern.id == "_":
        kept.append(node)
        return isinstance(node, ast.expr)
    if isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and all(
            _matches(getattr(pattern, name), getattr(node, name), kept)
            for name in pattern._fields
            if name not in ("ctx", "kind", "type_comment")
        )
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(
            _matches(a, b, kept) for a, b in zip(pattern, node, strict=True)
        )
    return bool(pattern == node)
