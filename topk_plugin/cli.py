"""The `topk` command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from topk_plugin import __version__
from topk_plugin.config import TopKConfig, add_run_arguments, unknown_name
from topk_plugin.errors import ConfigError, TopKError
from topk_plugin.launch import failed, run


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
        usage="topk run --critic module:Class [options] -- script.py [arguments] | -m module …",
        allow_abbrev=False,
    )
    launch.add_argument(
        "--critic",
        metavar="MODULE:CLASS",
        help="the critic's class; __main__:CLASS for a class of the script itself; "
        "MODULE:CLASS.ATTRIBUTE for a submodule, where the critic averages inside",
    )
    launch.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="write one JSON line a generator step; its batch and k are sums over the critic calls "
        "of the step",
    )
    add_run_arguments(launch)
    launch.add_argument("script", nargs=argparse.REMAINDER, help="after --, as python gets it")
    launch.set_defaults(command=_run, parser=launch)

    demo = commands.add_parser(
        "demo", help="train a small DCGAN on digits with and without top-k (CPU, minutes)"
    )
    demo.add_argument("--out", type=Path, default=Path("topk-demo"), help="folder for the results")
    demo.add_argument("--epochs", type=int, help="passes over the data of each arm")
    demo.set_defaults(command=_demo, parser=demo)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.critic is None:
        raise ConfigError(
            "topk run: --critic is missing, expected the critic's class, such as "
            "--critic model:Discriminator, before the script"
        )
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    config = TopKConfig.from_sources(vars(options), os.environ)
    return run(options.critic, config, script, options.log)


def _demo(options: argparse.Namespace) -> int:
    from topk_plugin.demo import run_demo

    return run_demo(options.out, options.epochs)
