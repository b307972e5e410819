"""The `topk` command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from topk_plugin import __version__
from topk_plugin.check import check
from topk_plugin.config import TopKConfig, add_run_arguments, unknown_name
from topk_plugin.errors import TopKError
from topk_plugin.hooks import adapters, plugin_manager
from topk_plugin.launch import Launch, failed, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it.

    Exit status: the script's own; 2 for a mistake in the command or the settings; 3 where top-k
    could not do its work.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    try:
        if unknown:
            known = [flag for a in options.parser._actions for flag in a.option_strings]
            raise unknown_name(unknown[0], "option", unknown[0], known)
        return int(options.command(options))
    except TopKError as error:
        return failed(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="topk", description="Top-k training for any PyTorch GAN, without editing it."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    launch = commands.add_parser(
        "run",
        help="run a training script with top-k in it",
        description="Run a script, unedited, with top-k between its critic and generator loss.",
        usage="topk run --adapter NAME | --critic module:Class [options] -- "
        "script.py [arguments] | -m module …",
        allow_abbrev=False,
    )
    _add_seam(launch)
    launch.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="write one JSON line a generator step; its batch and k are sums over the critic calls "
        "of the step",
    )
    launch.set_defaults(command=_run, parser=launch)

    audit = commands.add_parser(
        "check",
        help="audit the gradients of a script's first generator steps",
        description="Run the first generator steps of a script, unedited, with top-k in it, and "
        "compare their gradients with the literal formula.",
        usage="topk check --adapter NAME | --critic module:Class [options] -- "
        "script.py [arguments] | -m module …",
        allow_abbrev=False,
    )
    _add_seam(audit)
    audit.add_argument(
        "--steps",
        type=int,
        default=5,
        metavar="N",
        help="generator steps >= 1 that are audited, before the script is ended (default: 5)",
    )
    audit.set_defaults(command=_check, parser=audit)

    listing = commands.add_parser("adapters", help="list the repositories with an adapter")
    listing.set_defaults(command=_adapters, parser=listing)

    demo = commands.add_parser(
        "demo", help="train torch-mimicry's SN-GAN on digits without and with top-k (CPU, minutes)"
    )
    demo.add_argument("--out", type=Path, default=Path("topk-demo"), help="folder for the results")
    demo.add_argument("--steps", type=int, help="generator steps of each arm")
    demo.set_defaults(command=_demo, parser=demo)
    return parser


def _add_seam(parser: argparse.ArgumentParser) -> None:
    """What is launched, and where top-k goes in it."""
    parser.add_argument(
        "--adapter", metavar="NAME", help="of a repository that `topk adapters` lists"
    )
    parser.add_argument(
        "--critic",
        metavar="MODULE:CLASS",
        help="for any other: the critic's class; __main__:CLASS for a class of the script itself; "
        "MODULE:CLASS.ATTRIBUTE for a submodule, where the critic averages inside",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on where the repository differs from what its adapter was written for",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file with the settings below, alone or under topk:, or StudioGAN's, whose LOSS "
        "section has apply_topk, topk_gamma and topk_nu",
    )
    add_run_arguments(parser)
    parser.add_argument("script", nargs=argparse.REMAINDER, help="after --, as python gets it")


def _launch(options: argparse.Namespace, log: Path | None = None) -> tuple[Launch, list[str]]:
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    config = TopKConfig.from_sources(vars(options), os.environ, options.config)
    return Launch(config, options.critic, options.adapter, options.force, log), script


def _run(options: argparse.Namespace) -> int:
    return run(*_launch(options, options.log))


def _check(options: argparse.Namespace) -> int:
    return check(*_launch(options), options.steps)


def _adapters(options: argparse.Namespace) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for heading in ("adapter", "repository", "verified", "seam", "tested on"):
        table.add_column(heading, overflow="fold")  # a cut name is of no use
    for adapter in adapters(plugin_manager()).values():
        verified = ", ".join(adapter.versions)
        if adapter.distribution:
            verified = f"{adapter.distribution} {verified}"
        table.add_row(adapter.name, adapter.upstream, verified, adapter.seam, adapter.tested)
    Console(markup=False).print(table)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from topk_plugin.demo import run_demo

    return run_demo(options.out, options.steps)
