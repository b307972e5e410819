"""`topk patch` and `topk adapters`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from topk_plugin.adapter import Adapter
from topk_plugin.errors import ConfigError, UnsupportedUpstream
from topk_plugin.upstream import on_disk
from topk_plugin.upstream.known import adapters, find_adapter, recognised


def patch(options: argparse.Namespace) -> int:
    """Prints the edit of a checkout's source, writes it or undoes it; the exit status.

    Args:
        options: ``checkout``, ``adapter``, ``write``, ``revert``, ``modern``, ``force``.

    Raises:
        ConfigError: no such folder or adapter.
        UnsupportedUpstream: the source is not what the adapter was written for.
    """
    folder: Path = options.checkout
    if not folder.is_dir():
        raise ConfigError(f"topk patch: found no folder {str(folder)!r}, expected a checkout")
    known = adapters().values()
    if options.adapter != "auto":
        found = find_adapter(options.adapter)
    elif (written := on_disk.patched_in(folder, known)) is not None:
        found = written
    else:
        found, why = recognised([folder], parents=False, force=options.force)
        print(f"adapter auto: {found.name} ({found.upstream}), {why}", file=sys.stderr)
    base = on_disk.checkout_of(found, folder)
    if options.revert:
        restored = on_disk.revert(base) or ["nothing, since all files are as they were"]
        print(f"restored: {', '.join(restored)}", file=sys.stderr)
        return 0
    record = on_disk.recorded(base)
    if record is not None and (record["restored"] or record.get("modern") != options.modern):
        names = ", ".join(record["restored"])
        how = f"and {names} restored since" if names else "with the other of --modern, --no-modern"
        raise UnsupportedUpstream(
            f"{base}: the patch of the adapter {record['adapter']} was written, {how}; undo the "
            "rest of it first: --revert"
        )
    if record is not None:
        print(
            f"{base}: the patch of the adapter {record['adapter']} is there already; nothing was "
            "changed. --revert undoes it",
            file=sys.stderr,
        )
        return 0
    changes = on_disk.planned(found, base, options.modern, options.force)
    if options.write:
        on_disk.write(found, base, changes, options.modern)
        names = ", ".join(change.name for change in changes)
        print(f"written: {names}; undo it with --revert", file=sys.stderr)
    else:
        print("".join(change.diff() for change in changes), end="")
    return 0


def listed(options: argparse.Namespace) -> int:
    """Prints the table of adapters, or all that the one of a ``name`` states; the exit status."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if options.name is not None:
        table = Table.grid(padding=(0, 2))
        for what, text in _stated(find_adapter(options.name, "topk adapters ")).items():
            table.add_row(what, text)
    else:
        table = Table(box=box.SIMPLE)
        for heading in ("adapter", "repository", "verified", "seam", "tested on"):
            # a cut name is of no use, and an adapter's is typed as it stands
            table.add_column(heading, overflow="fold", no_wrap=heading == "adapter")
        for adapter in adapters().values():
            stated = _stated(adapter)
            table.add_row(*(stated[heading] for heading in list(stated)[:5]))
    Console(markup=False, highlight=False).print(table)
    return 0


def _stated(adapter: Adapter) -> dict[str, str]:
    """What an adapter says of itself; the first five are the columns of the list."""
    verified = ", ".join(adapter.versions)
    stated = {
        "adapter": adapter.name,
        "repository": adapter.upstream,
        "verified": f"{adapter.distribution} {verified}" if adapter.distribution else verified,
        "seam": adapter.seam,
        "tested on": adapter.tested,
        "realistic is": adapter.direction or "read from the loss",
        "an epoch is": adapter.epoch,
        "its counter": adapter.counter,
        "install": adapter.install or "a checkout",
        "topk patch": ", ".join(adapter.patch.files) if adapter.patch is not None else "no",
    }
    if adapter.companions == "follow":
        stated["companions"] = "follow"
    return stated
