"""Trains what others wrote with nothing named, compares it with top-k by hand, prints the table.

    python tests/others/run.py [--named] [--jobs N] [--keep FOLDER] [--list] [NAME ...]

NAME is of a training or of a repository. Exit status 1 where one is wrong. TOPK_UPSTREAMS names the
folder that has the checkouts, each as OWNER+NAME; OTHERS_PACKAGES folders that have packages. What
is not at hand is told, with how to get it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from others import trainers  # noqa: E402
from others.table import ROWS  # noqa: E402
from others.trial import HEADING, Outcome, compare, typed  # noqa: E402


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of trainings or repositories; without any, all")
    parser.add_argument("--named", action="store_true", help="with the critics named")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--keep", help="a folder for the trainings' folders, and what was said")
    parser.add_argument("--list", action="store_true", help="what would be trained, and end")
    arguments = parser.parse_args()
    names = arguments.names
    rows = [row for row in ROWS if not names or row.name in names or row.origin.name in names]
    if not rows:
        parser.error(f"no training or repository is called {' or '.join(names)}")
    absent = {row.origin: row.origin.missing() for row in rows}
    here = [row for row in rows if not absent[row.origin]]
    wrong = [] if arguments.list else trained(here, arguments)
    for row in here if arguments.list else []:
        print(f"{row.origin.name} {row.name}: {typed(row, arguments.named)}")
    for origin, missing in absent.items():
        if missing:
            print(f"not at hand: {origin.name} at {origin.version}: {missing}")
    for name, why in trainers.STOPPED.items():
        print(f"not run: {name}: {why}")
    if not arguments.list:
        print(f"{len(here) - len(wrong)} of {len(here)} right", *wrong)
    return bool(wrong)


def trained(rows: list, arguments: argparse.Namespace) -> list[str]:
    """Train and print; the names of those that are wrong."""
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or stack.enter_context(tempfile.TemporaryDirectory())
        pool = stack.enter_context(ThreadPoolExecutor(arguments.jobs))
        runs = [pool.submit(compare, row, Path(folder, row.name), arguments.named) for row in rows]
        print(HEADING)
        wrong, origin = [], None
        for run in runs:
            outcome: Outcome = run.result()
            row = outcome.row
            if row.origin != origin:
                origin = row.origin
                print(f"{origin.name} {origin.version[:10]}")
            print(f"  $ {typed(row, arguments.named)}\n{outcome.line()}", flush=True)
            Path(folder, row.name, "said.txt").write_text(outcome.said)
            wrong += [row.name] * bool(outcome.wrong)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
