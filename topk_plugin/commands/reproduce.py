"""The commands `topk reproduce` and `topk report`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from topk_plugin.errors import ConfigError


def add_parsers(commands: Any) -> None:
    """Add both to the subparsers of `topk`."""
    reproduction = commands.add_parser(
        "reproduce",
        help="train what a table or figure of the paper needs, and show it",
        description="Train what a result of the paper needs, with and without top-k from the same "
        "seeds, and show it beside the paper's numbers. A run that was stopped goes on where it "
        "was.",
        usage="topk reproduce table1|…|table5|figure2|figure3|figure4|neurips|schedules|study "
        "[options]",
        allow_abbrev=False,
    )
    reproduction.add_argument(
        "result",
        help="table1 to table5, figure2 to figure4, or neurips; schedules: Table 1 with k that "
        "goes back; study: under the settings that the paper leaves open",
    )
    reproduction.add_argument(
        "--preset",
        default="smoke",
        help="smoke (the default): a minute, shows that it runs; short: minutes; paper: its length",
    )
    reproduction.add_argument("--seeds", type=int, metavar="N", help="trainings of each kind")
    reproduction.add_argument(
        "--cells",
        type=_numbers,
        metavar="N,N",
        help="only these numbers of modes, held-out digits, or pixels",
    )
    reproduction.add_argument("--arms", type=_names, metavar="ARM,ARM", help="only these arms")
    reproduction.add_argument(
        "--dataset",
        help="digits (the default of smoke and short), mnist, fashion-mnist; of images also "
        "cifar10, folder (the defaults of paper, table4's is folder)",
    )
    reproduction.add_argument("--data", metavar="PATH", help="folder of its files, or an npz file")
    reproduction.add_argument(
        "--download",
        action="store_const",
        const="true",
        help="let torchvision download it into --data",
    )
    reproduction.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the trainer; may be given several times",
    )
    reproduction.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: topk-runs/RUN-PRESET)"
    )
    reproduction.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    reproduction.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that train at the same time (default: one a core, or one on a GPU)",
    )
    reproduction.add_argument(
        "--tensorboard",
        action="store_true",
        help="log for TensorBoard, too, into the folder of each job",
    )
    reproduction.set_defaults(command=_reproduce, parser=reproduction)

    reporting = commands.add_parser(
        "report",
        help="tables and figures of runs of `topk reproduce`, beside the paper's",
        allow_abbrev=False,
    )
    reporting.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    reporting.set_defaults(command=_report, parser=reporting)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected whole numbers such as 25,64"
        ) from None


def _names(text: str) -> list[str]:
    return text.split(",")


def _reproduce(options: argparse.Namespace) -> int:
    from topk_plugin.extras import needed

    for module in ("filelock", "sklearn", "scipy", "torchvision", "matplotlib", "pytorch_fid"):
        needed(module)  # before training, not after it
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard: tensorboard is not installed: pip install tensorboard")
    from topk_plugin.reference.report import report
    from topk_plugin.reference.runs import Request, keep_memory, reproduce
    from topk_plugin.reference.runs.progress import preparing, shown

    given = {name: getattr(options, name) for name in ("dataset", "data", "download")}
    overrides = {name: value for name, value in given.items() if value is not None}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set: found {item!r}, expected NAME=VALUE")
        overrides[name] = value
    request = Request(
        options.result, options.preset, options.seeds, options.cells, options.arms, overrides,
        options.out, options.device, options.workers, shlex.join(["topk", *sys.argv[1:]]),
        options.tensorboard,
    )  # fmt: skip
    keep_memory()
    try:
        folder = reproduce(request, shown, preparing())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return report([folder]) if os.environ.get("RANK", "0") == "0" else 0


def _report(options: argparse.Namespace) -> int:
    from topk_plugin.reference.report import report

    return report(options.folders)
