"""Source rules: edits of third-party files that are given by names, positions and digests.

An edit finds its place by the function it is in, a name that is called there, and which of how many
such calls is meant. The digest of the statement says whether that is still the code for which the
rule was written. Rules hold no line of anybody's source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from topk_plugin.source.text import digest_of_file

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

    place: Place  # of the inner call
    by: str = "topk"  # the function that is called with it


@dataclass(frozen=True)
class Insert:
    """Put one line before or after a statement, or first or last into a loop or function."""

    place: Place  # of the statement, loop or function
    code: str  # the line
    where: Literal["before", "after", "first", "last"] = "after"  # of it, or in it


@dataclass(frozen=True)
class Replace:
    """Put an expression in place of another, wherever it is found; nowhere is fine, too.

    ``find`` may begin with the name ``_`` ("_.cuda()"), which stands for any expression, and in
    ``by`` for the one found. It may be an import statement as well.
    """

    file: str  # as in Place
    find: str
    by: str
    scope: str | None = None  # None: the whole file


@dataclass(frozen=True)
class Argument:
    """Add a keyword argument to every call of ``call`` that has none of that name."""

    file: str  # as in Place
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
        """Whether the folder ``base`` has the files."""
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
