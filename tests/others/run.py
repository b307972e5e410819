"""Prints the table: python tests/others/run.py [--named] [--keep FOLDER] [NAME ...]

Exit status 1 where one row is wrong. TOPK_UPSTREAMS names the folder that has the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from others.pytorch_gan import REPOSITORY, ROWS  # noqa: E402
from others.trial import HEADING, checkout, compare  # noqa: E402


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of rows; without any, all")
    parser.add_argument("--named", action="store_true", help="with the critics named")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--keep", help="a folder for the scripts' folders, and what was said")
    arguments = parser.parse_args()
    source = checkout()
    if source is None:
        where = REPOSITORY.replace("/", "+")
        parser.error(f"no checkout {where} in the folder TOPK_UPSTREAMS")
    rows = [row for row in ROWS if not arguments.names or row.name in arguments.names]
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or stack.enter_context(tempfile.TemporaryDirectory())
        pool = stack.enter_context(ThreadPoolExecutor(arguments.jobs))
        runs = [
            pool.submit(compare, row, Path(folder, row.name), source, arguments.named)
            for row in rows
        ]
        print(HEADING)
        wrong = []
        for run in runs:
            outcome = run.result()
            print(outcome.line(), flush=True)
            Path(folder, outcome.row.name, "said.txt").write_text(outcome.said)
            wrong += [outcome.row.name] * bool(outcome.wrong)
    print(f"{len(rows) - len(wrong)} of {len(rows)} right", *wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
