"""The commands `topk compare` and `topk plot`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from topk_plugin.errors import ConfigError
from topk_plugin.streams import say


def add_parsers(commands: Any, add_seam: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add both to the subparsers of `topk`.

    Args:
        add_seam: adds the flags of `topk run` and the script.
    """
    trial = commands.add_parser(
        "compare",
        help="train a script several times without and with top-k, and say what differs",
        description="Train a script, unedited, from several seeds without and with top-k, and say "
        "by paired differences whether it helps. What has ended is not trained again: a command "
        "that was stopped goes on, and takes more seeds, arms and metrics.",
        usage="topk compare --seeds N --metric METRIC [--arm gamma=0.99,nu=0.5] --out DIR "
        "[options of topk run] -- script.py --seed {seed} --outdir {out}",
        allow_abbrev=False,
    )
    trial.add_argument("--seeds", type=int, default=3, metavar="N", help="pairs (default: 3)")
    trial.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="[higher:|lower:]KIND:…",
        help="may be given several times: fid:{out}/samples:REAL (REAL: a folder, or digits), "
        "json:{out}/FILE:key, csv:{out}/FILE:column (the last value, column@best the best), "
        "regex:PATTERN (its last match in the output), python:module:function (it gets {out})",
    )
    trial.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="settings of an arm; may be given several times (default: one, with the flags below)",
    )
    trial.add_argument(
        "--out", type=Path, default=Path("topk-trial"), metavar="DIR", help="folder of the trial"
    )
    trial.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="runs at the same time (default: one a core, or one on a GPU)",
    )
    trial.add_argument(
        "--seed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="seed a script whose command has no {seed}",
    )
    trial.add_argument(
        "--features",
        default="inception",
        metavar="NAME",
        help="of fid: inception (the default), the path of its weights, or classifier, a small "
        "network of scikit-learn's digits, whose distance is no FID",
    )
    add_seam(trial)
    trial.set_defaults(command=_compare, parser=trial)

    plot = commands.add_parser(
        "plot",
        help="draw k, kept and dropped scores of a `topk run --log` file, a figure a training",
        allow_abbrev=False,
    )
    plot.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    plot.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the figures (default: beside each log)"
    )
    plot.set_defaults(command=_plot, parser=plot)


def _compare(options: argparse.Namespace) -> int:
    from topk_plugin.extras import needed

    for module in ("filelock", "scipy", "matplotlib"):
        needed(module, "trials")  # before training, not after it
    from topk_plugin.trial.arms import arms_of, flags_of, settings_of
    from topk_plugin.trial.metrics import metric_of
    from topk_plugin.trial.report import written
    from topk_plugin.trial.runs import Run, Trial, failures, opened, threads_of, train

    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    metrics = [metric_of(text) for text in options.metric]
    arms = arms_of(options.arm)
    _require(options, script, [metric.spec for metric in metrics if metric.needs_out])
    name: str = "FID"
    distance: Callable[[Path, str], float] = _no_distance
    if any(metric.kind == "fid" for metric in metrics):
        from topk_plugin.trial.distances import distances

        name, distance = distances(options.features)
    folder = options.out.absolute()
    workers = options.workers or _workers()
    threads = threads_of(folder) or max(1, (os.cpu_count() or 1) // workers)
    flags = flags_of(vars(options))
    settings = {arm.name: settings_of(arm, flags, os.environ, options.config) for arm in arms}
    seam = _seam_flags(options)
    trial = Trial(folder, (*seam, *flags), tuple(script), options.seed, threads)
    runs = [Run(trial, arm, seed) for seed in range(options.seeds) for arm in arms]
    metrics = [
        metric.called(name, options.features) if metric.kind == "fid" else metric
        for metric in metrics
    ]
    with opened(trial, settings):
        try:
            _train(runs, workers, train)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with what is left", file=sys.stderr)
            return 130
        command = shlex.join(["topk", *sys.argv[1:]])
        say(written(folder, runs, metrics, distance, command), "stdout")
    for what, file in (("report", "report.md"), ("figure", "trial.png")):
        if (folder / file).exists():
            say(f"{what}   {folder / file}", "stdout")
    return 1 if failures(runs) else 0


def _require(options: argparse.Namespace, script: Sequence[str], specs: Sequence[str]) -> None:
    """Raises ConfigError where the command cannot be a trial."""
    if not script:
        raise ConfigError(
            "topk compare: found no script, expected one after --, such as "
            "-- train.py --seed {seed} --outdir {out}"
        )
    if options.enabled is False:
        raise ConfigError("--no-enabled: found all arms switched off, expected a trial of top-k")
    for flag, number in (("--seeds", options.seeds), ("--workers", options.workers)):
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: found {number}, expected at least 1")
    if specs and not any("{out}" in word for word in script):
        raise ConfigError(
            f"topk compare: found no {{out}} in the command, and the metric {specs[0]!r} reads "
            "what each run writes; expected the script's flag for its output folder, such as "
            "-- train.py --outdir {out}"
        )


def _no_distance(folder: Path, real: str) -> float:
    raise AssertionError("no metric is a distance")


def _workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _seam_flags(options: argparse.Namespace) -> list[str]:
    flags = [f"--adapter={options.adapter}"] if options.adapter is not None else []
    flags += [f"--critic={critic}" for critic in options.critic]
    flags += [flag for flag in ("--find", "--force") if getattr(options, flag[2:])]
    return flags + ([f"--config={options.config.absolute()}"] if options.config else [])


def _train(runs: Sequence[Any], workers: int, train: Callable[..., None]) -> None:
    """With a bar on a terminal, and a line a run elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, markup=False)
    left = sum(not run.has_ended for run in runs)
    if left < len(runs):
        console.print(f"{len(runs) - left} of {len(runs)} runs have ended before")
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - left)

        def tell(run: Any) -> None:
            result = run.result()
            how = "ended" if result["status"] == 0 else f"failed with status {result['status']}"
            console.print(f"{run.name}: {how} after {result['seconds']:.0f} s", soft_wrap=True)
            progress.advance(task)

        train(runs, workers, tell)


def _plot(options: argparse.Namespace) -> int:
    from topk_plugin.extras import needed

    needed("matplotlib", "figures")
    from topk_plugin.trial.steps import by_training, figure_paths, read_log, steps_figure

    logs = [*{log.absolute(): log for log in options.logs}.values()]
    for log, path in zip(logs, figure_paths(logs, options.out), strict=True):
        trainings = by_training(read_log(log))
        for which, records in trainings.items():
            figure = path.with_name("-".join(filter(None, (path.name, which))) + ".png")
            try:
                figure.parent.mkdir(parents=True, exist_ok=True)
                steps_figure(records).savefig(figure, dpi=120)
            except OSError as error:
                raise ConfigError(
                    f"{figure}: not written ({error.strerror}), expected a folder that can be; "
                    "give one by --out"
                ) from None
            say(f"figure   {figure} ({len(records):,} generator steps)", "stdout")
    return 0
