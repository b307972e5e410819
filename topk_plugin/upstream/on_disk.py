"""`topk patch`: the source rules of an adapter on disk, as a diff, written, and undone.

What was written is recorded in a file of the checkout, so that it can be undone line by line also
after edits elsewhere in the same files. All files are written, or none.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topk_plugin.adapter import Adapter
from topk_plugin.errors import ConfigError, SeamNotFound, UnsupportedUpstream
from topk_plugin.source.rules import IMPORT, file_of
from topk_plugin.source.text import Source, lines_of
from topk_plugin.upstream.checkout import RECORD, check_rules, find_checkout

CONTEXT = 3
"""Lines around an edit that tell it from others."""


@dataclass(frozen=True)
class Hunk:
    """Lines that were replaced, with those around them."""

    above: list[str]
    before: list[str]
    after: list[str]
    below: list[str]


@dataclass(frozen=True)
class Change:
    """One file, and what is to become of it."""

    path: Path
    name: str  # relative to the checkout
    before: Source
    after: Source

    def diff(self) -> str:
        """As `patch` reads it."""
        old, new = lines_of(self.before.text), lines_of(self.after.text)
        lines = difflib.unified_diff(old, new, f"a/{self.name}", f"b/{self.name}")
        whole = [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
                 for line in lines]  # fmt: skip
        return "".join(whole)

    def hunks(self) -> list[Hunk]:
        """What :func:`undone` needs."""
        old, new = lines_of(self.before.text), lines_of(self.after.text)
        codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        return [
            Hunk(new[max(0, j - CONTEXT) : j], old[i:last], new[j:end], new[end : end + CONTEXT])
            for tag, i, last, j, end in codes
            if tag != "equal"
        ]


def checkout_of(adapter: Adapter, folder: Path) -> Path:
    """The folder to which the files of the adapter's rules are relative.

    Raises:
        ConfigError: the adapter has no rules.
        SeamNotFound: no checkout of the adapter's repository.
    """
    if adapter.patch is None:
        raise ConfigError(
            f"topk patch: the adapter {adapter.name} has no source rules, since "
            f"{adapter.upstream} is used as an installed package; use topk run --adapter "
            f"{adapter.name}"
        )
    base = find_checkout(adapter, [folder], parents=False)
    if base is None:
        files = ", ".join(adapter.patch.files)
        raise SeamNotFound(
            f"topk patch: found no {files} in {folder}, expected a checkout of {adapter.upstream}"
        )
    return base


def patched_in(folder: Path, adapters: Iterable[Adapter]) -> Adapter | None:
    """Which of the adapters' patches was written into a checkout, or may have been, unrecorded."""
    unrecorded = None
    for adapter in adapters:
        base = find_checkout(adapter, [folder], parents=False)
        record = None if base is None else recorded(base)
        if record is not None and record["adapter"] == adapter.name:
            return adapter  # others may fit: a main.py is in many folders
        if base is not None and record is None and patched(base):
            unrecorded = unrecorded or adapter
    return unrecorded


def planned(adapter: Adapter, base: Path, modern: bool = True, force: bool = False) -> list[Change]:
    """The changes that put top-k, and a flag for it, into a checkout.

    Args:
        modern: and what it needs to run on today's torch and Python, and on CPU.
        force: go on by names and positions where a digest differs.

    Raises:
        UnsupportedUpstream: a file differs from what the rules were written for.
    """
    patch = adapter.patch
    assert patch is not None  # see checkout_of()
    rules = patch.flags + patch.topk + (patch.modern if modern else ())
    changes = []
    for name in dict.fromkeys(file_of(rule) for rule in rules):
        path = base / name
        if not path.is_file():
            continue  # of a modern rule: a script that this checkout does not have
        mine = [rule for rule in rules if file_of(rule) == name]
        before = Source.read(path)
        after = Source(check_rules(adapter, path, mine, force), before.encoding)
        if after != before:
            changes.append(Change(path, name, before, after))
    return changes


def patched(base: Path) -> bool:
    """Whether top-k is in the source of a folder, with a record of it or without."""
    return any(IMPORT in path.read_text(errors="replace") for path in base.rglob("*.py"))


def recorded(base: Path) -> dict[str, Any] | None:
    """What was written into a checkout, without files that were restored by hand; None: nothing.

    Its "restored" are the names of those files.

    Raises:
        UnsupportedUpstream: its record cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((base / RECORD).read_text(encoding="utf-8"))
        files = {
            name: file
            for name, file in record["files"].items()
            if not (base / name).is_file() or _sum((base / name).read_bytes()) != file["before"]
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedUpstream(
            f"{base / RECORD}: found no record of a patch ({error}); restore the files by hand, "
            "such as by git checkout, and remove it"
        ) from None
    restored = [name for name in record["files"] if name not in files]
    return {**record, "files": files, "restored": restored} if files else None


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(adapter: Adapter, base: Path, changes: Sequence[Change], modern: bool = True) -> None:
    """Write all changes and their record, or nothing.

    Args:
        modern: as they were planned.

    Raises:
        ConfigError: a file cannot be written.
    """
    files = {
        c.name: {"before": _sum(c.before.encode()), "hunks": [asdict(h) for h in c.hunks()]}
        for c in changes
    }
    record = json.dumps({"adapter": adapter.name, "modern": modern, "files": files}, indent=1)
    _replace(
        {c.path: c.after.encode() for c in changes} | {base / RECORD: record.encode()},
    )


def revert(base: Path) -> list[str]:
    """Undo what :func:`write` wrote; edits elsewhere in the files stay.

    Returns:
        names of the files that were changed.

    Raises:
        ConfigError: nothing was written there, or a file cannot be written.
        UnsupportedUpstream: lines that were put in have been edited since; nothing is changed.
    """
    record = recorded(base)
    if record is None and (base / RECORD).exists():
        (base / RECORD).unlink()
        return []  # all files are as they were
    if record is None and patched(base):
        raise UnsupportedUpstream(
            f"topk patch --revert: found top-k in the source, but no {RECORD} in {base}, which "
            "says what was there before; restore the files by hand, such as by git checkout"
        )
    if record is None:
        raise ConfigError(f"topk patch --revert: found no {RECORD} in {base}; nothing was patched")
    files = record["files"]
    new = {}
    for name, file in files.items():
        path = base / name
        source = Source.read(path)
        text = undone(source.text, [Hunk(**hunk) for hunk in file["hunks"]], str(path))
        new[path] = Source(text, source.encoding).encode()
    _replace(new)
    (base / RECORD).unlink()
    return list(files)


def undone(text: str, hunks: Sequence[Hunk], name: str) -> str:
    """``text`` with each hunk's lines as they were before.

    Raises:
        UnsupportedUpstream: a hunk's lines are not there, or at several places.
    """
    lines = lines_of(text)
    for hunk in reversed(hunks):  # what stands above is still as it was written
        for context in range(CONTEXT, -1, -1):
            above = hunk.above[len(hunk.above) - min(context, len(hunk.above)) :]
            after = above + hunk.after + hunk.below[:context]
            places = [
                i for i in range(len(lines) - len(after) + 1) if lines[i : i + len(after)] == after
            ]
            if len(places) == 1 and after:
                start = places[0] + len(above)
                lines[start : start + len(hunk.after)] = hunk.before
                break
        else:
            raise UnsupportedUpstream(
                f"{name}: found no single place with the line that was put in, "
                f"{''.join(hunk.after).strip()!r}; it was edited since. Nothing was changed: undo "
                "that edit first, or restore the file by hand, such as by git checkout"
            )
    return "".join(lines)


def _replace(files: Mapping[Path, bytes]) -> None:
    """Write all files, or none; what is a link stays one."""
    files = {path.resolve(): content for path, content in files.items()}
    drafts = {path: path.with_name(path.name + ".topk-draft") for path in files}
    old: dict[Path, bytes | None] = {}
    try:
        for path, draft in drafts.items():
            draft.write_bytes(files[path])
            if path.exists():
                shutil.copymode(path, draft)
        for path, draft in drafts.items():
            old[path] = path.read_bytes() if path.exists() else None
            os.replace(draft, path)
    except OSError as error:
        for path, content in old.items():
            if content is not None:
                path.write_bytes(content)
            else:
                path.unlink(missing_ok=True)
        raise ConfigError(
            f"topk patch: cannot write {error.filename}: {error.strerror}; nothing was changed"
        ) from None
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
