"""The `topk` command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topk_plugin import __version__
from topk_plugin.check.command import check
from topk_plugin.commands import compare, reproduce
from topk_plugin.config import TopKConfig, add_run_arguments
from topk_plugin.errors import TopKError, unknown_name
from topk_plugin.run.activation import Launch
from topk_plugin.run.execute import checkout_roots, exit_status_of
from topk_plugin.run.launch import run
from topk_plugin.streams import say
from topk_plugin.upstream.command import listed, patch
from topk_plugin.upstream.known import find_adapter, own_settings, recognised, suiting


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
        return exit_status_of(error)


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
        usage="topk run [--adapter NAME | --critic module:Class] [options] -- "
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
    launch.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="show k, thresholds, scores of kept and dropped rows, and what is kept of each class, "
        "in TensorBoard: event files in DIR",
    )
    launch.add_argument(
        "--wandb",
        action="store_true",
        help="show the same in the run of Weights & Biases that the script opens",
    )
    launch.set_defaults(command=_run, parser=launch)

    audit = commands.add_parser(
        "check",
        help="audit the gradients of a script's first generator steps",
        description="Run the first generator steps of a script, unedited, with top-k in it, and "
        "compare their gradients with the literal formula.",
        usage="topk check [--adapter NAME | --critic module:Class] [options] -- "
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

    patching = commands.add_parser(
        "patch",
        help="put top-k and a flag for it into a checkout's source",
        description="Print, as a diff, the source edit that does what `topk run --adapter` does, "
        "with --topk flags for the repository's own parser; write it, or undo it.",
        usage="topk patch CHECKOUT --adapter NAME [--write | --revert] [--no-modern] [--force]",
        allow_abbrev=False,
    )
    patching.add_argument("checkout", type=Path, help="folder of the repository")
    patching.add_argument(
        "--adapter",
        default="auto",
        metavar="NAME",
        help="of a repository that `topk adapters` lists; auto (the default) goes by its files",
    )
    what = patching.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write it; a second time is as once")
    what.add_argument("--revert", action="store_true", help="undo what was written")
    patching.add_argument(
        "--modern",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="and the least that the repository needs to run on today's torch and Python, and "
        "on CPU (default)",
    )
    patching.add_argument(
        "--force",
        action="store_true",
        help="go on by names and positions where the source differs from the verified commit",
    )
    patching.set_defaults(command=patch, parser=patching)

    listing = commands.add_parser(
        "adapters", help="list the repositories with an adapter", allow_abbrev=False
    )
    listing.add_argument("name", nargs="?", metavar="NAME", help="all that one of them states")
    listing.set_defaults(command=listed, parser=listing)

    compare.add_parsers(commands, _add_seam)
    reproduce.add_parsers(commands)

    demo = commands.add_parser(
        "demo",
        help="train torch-mimicry's SN-GAN on digits without and with top-k (CPU, minutes)",
        allow_abbrev=False,  # --seed is not --seeds
    )
    demo.add_argument("--out", type=Path, default=Path("topk-demo"), help="folder for the results")
    demo.add_argument("--steps", type=int, help="generator steps of each arm")
    demo.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="pairs of trainings (default: 1)"
    )
    demo.set_defaults(command=_demo, parser=demo)
    return parser


def _add_seam(parser: argparse.ArgumentParser) -> None:
    """What is launched, and where top-k goes in it."""
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help="of a repository that `topk adapters` lists; auto goes by the repository's files",
    )
    parser.add_argument(
        "--critic",
        action="append",
        default=[],
        metavar="MODULE:CLASS[=HEADS]",
        help="for any other: the critic's class and its module, by the whole name; __main__:CLASS "
        "for one of the script itself; MODULE:CLASS.ATTRIBUTE for a submodule, where the critic "
        "averages inside. Of several critics each is given, perhaps with heads of its own",
    )
    parser.add_argument(
        "--find",
        action="store_true",
        help="find the critics, as is done where neither is given and no adapter fits; of an "
        "adapter only what its repository needs to run is used",
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


def _launch(options: argparse.Namespace) -> tuple[Launch, list[str]]:
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    name, file = options.adapter, options.config
    named, fit = bool(name or options.critic or options.find), None
    if name == "auto" and script:
        fit = recognised(checkout_roots(script), script, force=options.force)
    elif script and not named:
        fit = suiting(checkout_roots(script), script)
    if fit is not None:
        adapter, why = fit
        say(f"top-k adapter auto: {adapter.name} ({adapter.upstream}), {why}")
        name = adapter.name
    if name is not None and file is None and options.enabled is not False:
        file = own_settings(find_adapter(name), script)
    config = TopKConfig.from_sources(vars(options), os.environ, file)
    if not config.enabled and file is not None and options.config is None:
        say(f"top-k off: {file} says so; --enabled switches it on")
    given = {where: getattr(options, where, None) for where in ("log", "tensorboard", "wandb")}
    shown: dict[str, Any] = {where: what for where, what in given.items() if what}
    critics = tuple(options.critic)
    return Launch(config, critics, name, options.force, find=options.find, **shown), script


def _run(options: argparse.Namespace) -> int:
    return run(*_launch(options))


def _check(options: argparse.Namespace) -> int:
    return check(*_launch(options), options.steps)


def _demo(options: argparse.Namespace) -> int:
    from topk_plugin.demo import run_demo

    return run_demo(options.out, options.steps, seeds=options.seeds)
