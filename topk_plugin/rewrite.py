"""Source rules: edits of third-party files that are given by names, positions and digests.

An edit finds its place by the function it is in, a name that is called there, and which of how many
such calls is meant. The digest of the statement says whether that is still the code for which the
rule was written. Rules hold no line of anybody's source.

:func:`rewritten` makes a new text from a text; :class:`Rewriter` does so when a file is imported or
run, without touching it; :mod:`topk_plugin.patch` does so on disk.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import io
import re
import sys
import tokenize
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from topk_plugin.errors import UnsupportedUpstream

IMPORT = "from topk_plugin.script import topk"
"""What the code that the rules put in refers to."""


@dataclass(frozen=True)
class Place:
    """A place in a file: the ``nth`` of ``of`` in the code of ``scope``, inner functions excluded.

    ``at`` is a dotted name that is called there ("self.D"), "for" or "while" for a loop, "def" for
    the function itself, or "import" for the module's last import.
    """

    file: str  # relative to the checkout, or to the folder of it that the patch names
    scope: str  # "Trainer.train"; "" for the module's own code
    at: str
    nth: int = 1
    of: int = 1
    # of the statement, or of a loop's or a function's first line; see digest(). Empty: any
    digest: str = ""


@dataclass(frozen=True)
class Enclose:
    """Put a call around a call: ``D(x)`` becomes ``topk(D(x))``."""

    place: Place
    by: str = "topk"


@dataclass(frozen=True)
class Insert:
    """Put one line before or after a statement, or first or last into a loop or function."""

    place: Place
    code: str
    where: Literal["before", "after", "first", "last"] = "after"


@dataclass(frozen=True)
class Replace:
    """Put an expression in place of another, wherever it is found; nowhere is fine, too.

    ``find`` may begin with the name ``_`` ("_.cuda()"), which stands for any expression, and in
    ``by`` for the one found. It may be an import statement as well.
    """

    file: str
    find: str
    by: str
    scope: str | None = None  # None: the whole file


@dataclass(frozen=True)
class Argument:
    """Add a keyword argument to every call of ``call`` that has none of that name."""

    file: str
    call: str
    code: str  # "weights_only=False"
    scope: str | None = None  # None: the whole file


Rule = Enclose | Insert | Replace | Argument


@dataclass(frozen=True)
class Patch:
    """The rules of one repository."""

    commit: str  # for which they were written
    topk: tuple[Rule, ...]  # the gate, the epochs, the record in checkpoints
    # flags for the repository's own parser, and their use: on disk only, `topk run` has its own
    flags: tuple[Rule, ...] = ()
    # the least that the repository needs to run on today's torch and Python, and on CPU
    modern: tuple[Rule, ...] = ()
    folder: str = ""  # of the repository, to which the files are relative
    # of whole files at that commit, which tell it from others
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def epoch_files(self) -> set[str]:
        """Files in which a rule says when an epoch ends."""
        inserts = (rule for rule in self.topk if isinstance(rule, Insert))
        return {rule.place.file for rule in inserts if "_epoch(" in rule.code}

    @property
    def topk_places(self) -> list[Enclose | Insert]:
        """The rules of top-k that have to find their place."""
        return [rule for rule in self.topk if isinstance(rule, Enclose | Insert)]

    @property
    def files(self) -> list[str]:
        """Those that a checkout must have."""
        return sorted({rule.place.file for rule in self.topk_places})

    def fits(self, base: Path) -> bool:
        """Whether a folder has the files."""
        return all((base / name).is_file() for name in self.files)

    def is_known(self, base: Path) -> bool:
        """Whether the files at ``base`` are those of the commit."""
        return bool(self.digests) and all(
            (base / name).is_file() and digest_of_file(base / name) == known
            for name, known in self.digests.items()
        )


def file_of(rule: Rule) -> str:
    """The file that a rule edits."""
    return rule.place.file if isinstance(rule, Enclose | Insert) else rule.file


# --- text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file's text, as it is to be written back."""

    text: str
    encoding: str = "utf-8"

    @classmethod
    def read(cls, path: Path) -> Source:
        """Raises UnsupportedUpstream where it is no text."""
        data = path.read_bytes()
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            return cls(data.decode(encoding), encoding)
        except (SyntaxError, UnicodeDecodeError) as error:
            raise UnsupportedUpstream(f"{path}: found no Python source ({error})") from None

    def encode(self) -> bytes:
        return self.text.encode(self.encoding)


def lines_of(text: str) -> list[str]:
    """Lines as Python counts them, with their ends."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", text)


def digest(text: str) -> str:
    """12 hex digits that do not change with comments, white space and line ends."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    words = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text, newline="").readline):
            if token.type not in layout:
                words.append(token.string)
    except (tokenize.TokenError, IndentationError):  # the first line of a block has no block
        pass
    return hashlib.sha256("".join("".join(words).split()).encode()).hexdigest()[:12]


def digest_of_file(path: Path) -> str:
    """Of a whole file, whatever its line ends."""
    data = path.read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha256(data).hexdigest()[:12]


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


# --- places -------------------------------------------------------------------------------------

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


# --- patterns -----------------------------------------------------------------------------------


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


# --- in memory ----------------------------------------------------------------------------------


class Rewriter(importlib.abc.MetaPathFinder):
    """Rewrites the files of one checkout as they are imported or run, from install to remove.

    Args:
        rules: of them.
        base: the folder to which their files are relative.
        force: see :func:`rewritten`.
        done: told each file's path and the rules that were applied.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        base: Path,
        force: bool = False,
        done: Callable[[Path, tuple[Rule, ...]], None] = lambda path, rules: None,
    ) -> None:
        self.base, self.force, self.done = base.resolve(), force, done
        self.rules: dict[Path, list[Rule]] = {}
        for rule in rules:
            self.rules.setdefault(self.base / file_of(rule), []).append(rule)

    def install(self) -> None:
        """Begin; twice is fine."""
        if self.rules and self not in sys.meta_path:
            # just before the one it stands in for: wrapt's hooks, further ahead, see what it finds
            paths = sys.meta_path.index(importlib.machinery.PathFinder)
            sys.meta_path.insert(paths, self)

    def remove(self) -> None:
        """Files that are imported from now on are as they are on disk; twice is fine."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module whose file is to be rewritten."""
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        if spec.origin is None or Path(spec.origin).resolve() not in self.rules:
            return None
        spec.loader = _Loader(fullname, spec.origin, self)
        return spec

    def code(self, path: Path) -> types.CodeType | None:
        """The code of a file with its edits, in which every line has its own number; or None.

        Raises:
            UnsupportedUpstream: see :func:`rewritten`.
        """
        rules = self.rules.get(path.resolve())
        if rules is None:
            return None
        source = Source.read(path).text
        new = rewritten(source, rules, str(path), self.force)
        tree = ast.parse(new.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt | ast.expr | ast.excepthandler | ast.arg | ast.keyword):
                node.lineno = new.lines[node.lineno - 1]
                node.end_lineno = new.lines[(node.end_lineno or node.lineno) - 1]
        self.done(path.resolve(), new.applied)
        return compile(tree, str(path), "exec", dont_inherit=True)


class _Loader(importlib.machinery.SourceFileLoader):
    """No bytecode is read or written: it would be that of the file on disk."""

    def __init__(self, fullname: str, path: str, rewriter: Rewriter) -> None:
        super().__init__(fullname, path)
        self._rewriter = rewriter

    def get_code(self, fullname: str) -> types.CodeType | None:
        return self._rewriter.code(Path(self.path))


def code_of(path: Path) -> types.CodeType | None:
    """The code of a script that an installed :class:`Rewriter` edits; None for any other."""
    for finder in sys.meta_path:
        if isinstance(finder, Rewriter) and (code := finder.code(path)) is not None:
            return code
    return None
