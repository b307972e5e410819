"""What an adapter does to its upstream in memory: stand-ins for modules, and source rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from topk_plugin.adapter import Adapter
from topk_plugin.errors import SeamNotFound, UnsupportedUpstream
from topk_plugin.source.edits import rewritten
from topk_plugin.source.in_memory import Rewriter
from topk_plugin.source.rules import IMPORT, Rule
from topk_plugin.source.text import Source
from topk_plugin.upstream.stubs import Stubs

RECORD = ".topk_patch.json"
"""What `topk patch` wrote, in the folder to which the rules' files are relative."""

PARENTS = 2
"""Folders above a launched script in which its checkout may begin."""


class Upstream:
    """One upstream, from ``install()`` to ``remove()``.

    Args:
        adapter: of it.
        roots: folders of the launched checkout.
        gated: the patch's topk rules are applied too, not only what makes the upstream run.
        force: see :func:`~topk_plugin.source.edits.rewritten`.
        done: see :class:`~topk_plugin.source.in_memory.Rewriter`.
    """

    def __init__(
        self,
        adapter: Adapter,
        roots: Sequence[Path],
        gated: bool = False,
        force: bool = False,
        done: Callable[[Path, tuple[Rule, ...]], None] = lambda path, rules: None,
    ) -> None:
        self.adapter, self.roots, self.gated, self.force = adapter, roots, gated, force
        self.base = find_checkout(adapter, roots)
        self.stubs = Stubs(adapter, [*roots, *([self.base] if self.base else [])])
        self._rewriter: Rewriter | None = None
        if adapter.patch is not None and self.base is not None:
            rules = adapter.patch.modern + (adapter.patch.topk if gated else ())
            self._rewriter = Rewriter(rules, self.base, force, done)
        elif adapter.modern and (folder := _folder_of_package(adapter, roots)) is not None:
            self._rewriter = Rewriter(adapter.modern, folder, force, done)

    def check(self) -> list[str]:
        """Whether the topk rules find their places, before anything runs.

        Returns:
            what differs from what they were written for, if that is forced.

        Raises:
            SeamNotFound: the files are not there.
            UnsupportedUpstream: they differ from what the rules were written for.
        """
        patch = self.adapter.patch
        if patch is None:
            return []
        if not self.gated:
            for rule in patch.topk_places:
                if self.base is not None:
                    unpatched(self.base / rule.place.file)
            return []
        if self.base is None or self._rewriter is None:
            files = ", ".join(patch.files)
            raise SeamNotFound(
                f"adapter {self.adapter.name}: found no checkout of {self.adapter.upstream} in "
                f"{' or '.join(map(str, self.roots))}; expected its {files} there or in a folder "
                f"above. Run the command in the checkout, or name the critic: --critic module:Class"
            )
        differ = []
        for path, rules in self._rewriter.rules.items():
            if not path.is_file():
                continue  # of a modern rule: a script that this checkout does not have
            try:
                check_rules(self.adapter, path, rules, force=False)
            except UnsupportedUpstream as error:
                check_rules(self.adapter, path, rules, self.force)
                differ.append(str(error.__context__))
        return differ

    def install(self) -> None:
        """Begin; twice is fine."""
        self.stubs.install()
        if self._rewriter is not None:
            self._rewriter.install()

    def remove(self) -> None:
        """What is imported from now on is as it is; twice is fine."""
        if self._rewriter is not None:
            self._rewriter.remove()
        self.stubs.remove()

    def release(self) -> str | None:
        """The commit of a checkout in which the files are those that the rules were written for."""
        patch = self.adapter.patch
        known = patch is not None and self.base is not None and patch.is_known(self.base)
        return patch.commit if known and patch else None


def find_checkout(adapter: Adapter, roots: Sequence[Path], parents: bool = True) -> Path | None:
    """The folder to which the files of an adapter's rules are relative, if it is there.

    Args:
        parents: look in the folders above, too.
    """
    if adapter.patch is None:
        return None
    patch = adapter.patch
    folders = [
        folder
        for root in (root.resolve() for root in roots)
        for folder in (root / patch.folder, root, *root.parents[: PARENTS * parents])
    ]
    found = [folder for folder in dict.fromkeys(folders) if patch.fits(folder)]
    # a main.py is in many folders
    sure = (base for base in found if patch.is_known(base) or (base / RECORD).is_file())
    return next(sure, found[0] if found else None)


def _folder_of_package(adapter: Adapter, roots: Sequence[Path]) -> Path | None:
    """The folder that holds an adapter's package, of the checkout or else as it is installed."""
    package = adapter.wraps[0].module.partition(".")[0]
    for root in roots:
        if (root / package).is_dir():
            return root
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parents[1] if spec is not None and spec.origin else None


def unpatched(path: Path) -> str:
    """A file's text.

    Raises:
        UnsupportedUpstream: `topk patch` has edited it.
    """
    text = Source.read(path).text
    if IMPORT in text:
        raise UnsupportedUpstream(
            f"{path}: `topk patch` has put top-k into this file already. Run the script itself "
            "with --topk, or undo the patch first: topk patch CHECKOUT --revert"
        )
    return text


def check_rules(adapter: Adapter, path: Path, rules: Sequence[Rule], force: bool) -> str:
    """A file's text with the edits.

    Raises:
        UnsupportedUpstream: it is edited already, or differs from what the rules were written for.
    """
    text = unpatched(path)
    try:
        return rewritten(text, rules, str(path), force).text
    except UnsupportedUpstream as error:
        assert adapter.patch is not None  # they are its rules
        raise UnsupportedUpstream(
            f"adapter {adapter.name}: {error}; the adapter was written for {adapter.upstream} "
            f"{adapter.patch.commit}, and nothing was changed. Undo the local edit there, name the "
            "critic, which needs no adapter (--critic module:Class), or go on by names and "
            "positions alone: --force"
        ) from None
