"""Files that are edited as they are imported or run, and stay as they are on disk."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from topk_plugin.source.edits import rewritten
from topk_plugin.source.rules import Rule, file_of
from topk_plugin.source.text import Source


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
