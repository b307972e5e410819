"""One training: where its code comes from, what is typed, where top-k by hand stands."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from others import data

HERE = Path(__file__).parent
OURS = "loops/"  # scripts of our own, around a library's networks, losses and trainers


def extra() -> list[str]:
    """The folders of packages that OTHERS_PACKAGES names."""
    return [path for path in os.environ.get("OTHERS_PACKAGES", "").split(os.pathsep) if path]


class Origin(NamedTuple):
    """A repository, or a package of a registry."""

    name: str  # OWNER/NAME; a package's name has no slash
    version: str  # the commit, or the release
    needs: tuple[str, ...] = ()  # modules, beside what this project's tests have
    own_folder: bool = False  # its scripts are run in their own folders

    def checkout(self) -> Path | None:
        """The checkout, if it is in the folder that TOPK_UPSTREAMS names."""
        folder = os.environ.get("TOPK_UPSTREAMS")
        path = Path(folder or "", self.name.replace("/", "+"))
        return path if folder and "/" in self.name and path.is_dir() else None

    def missing(self) -> str:
        """How to get what is not at hand; empty if all is."""
        words = []
        if "/" in self.name and self.checkout() is None:
            where = self.name.replace("/", "+")
            words.append(f"a checkout of {self.name} as {where} in the folder TOPK_UPSTREAMS")
        path = [*extra(), *sys.path]
        importlib.invalidate_caches()
        gone = [m for m in self.needs if importlib.machinery.PathFinder.find_spec(m, path) is None]
        if gone:
            words.append(
                f"modules {', '.join(gone)}, here or in a folder that OTHERS_PACKAGES names"
            )
        return "; ".join(words)


class Wrap(NamedTuple):
    """Where top-k by hand stands in a script."""

    expression: str  # as ast.unparse writes it
    occurrence: int = 1  # of that text in the file
    low: bool = False  # low scores are the realistic ones
    heads: tuple[int | str, ...] = ()  # of several outputs those that are ranked, by their average
    form: Literal["scores", "inside", "input", "last"] = "scores"  # see by_hand.py
    file: str = ""  # of the checkout or the package, where it is not the script


class Row(NamedTuple):
    """One training."""

    name: str
    arguments: str
    data: data.Writer
    wraps: tuple[Wrap, ...]
    found: str = "__main__:Discriminator"  # as the header says it
    critic: str = "__main__:Discriminator"  # as it is named; several with a space between
    asks: str = ""  # what the error says where nothing can be found
    thin: int = 1  # by what the channels of wide convolutions are divided
    flags: str = ""  # of top-k
    script: str = ""  # of the checkout; loops/NAME.py is one of ours
    origin: Origin = Origin("", "")
    epoch: str | int = "epoch"  # an expression where a wrap stands, or its steps in a pass
    shims: tuple[str, ...] = ()  # of startup/shims_for_others

    def typed(self) -> str:
        """The script and its arguments, as they are typed."""
        name = self.script.rpartition("/")[2] if self.origin.own_folder else self.script
        return f"{name} {self.arguments}".strip()
