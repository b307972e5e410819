"""`topk demo`: a small trial of torch-mimicry's own SN-GAN trainer, without and with top-k.

`sngan_digits.py` beside this file is written as a user of torch-mimicry would write it: it imports
nothing of this package. Its two runs go side by side from the same seed, as `topk compare` would
have them.
"""

import importlib.util
import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from topk_plugin.errors import ConfigError, TopKError
from topk_plugin.streams import say
from topk_plugin.trial.arms import arms_of
from topk_plugin.trial.distances import CLASSIFIER, distances
from topk_plugin.trial.metrics import metric_of
from topk_plugin.trial.report import written
from topk_plugin.trial.runs import LOG, TRIAL, Run, Trial, failures, opened, train
from topk_plugin.trial.steps import read_log, steps_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = Path(__file__).with_name("sngan_digits.py")
GAMMA = 0.85  # k reaches half of 32 after 4 of the script's 8 epochs
NU = 0.5
METRIC = "fid:{out}/samples:digits"

NEEDED = (
    "torch_mimicry", "torchvision", "skimage", "sklearn", "tensorboard", "matplotlib",
    "filelock",
)  # fmt: skip
INSTALL = "pip install 'topk_plugin[demo]' && pip install --no-deps torch-mimicry==0.1.16"
MADE = (TRIAL, "runs", "report.md", "report.json", "trial.png", "samples.png", "topk.png")


def run_demo(
    out: Path,
    steps: int | None = None,
    gamma: float = GAMMA,
    nu: float = NU,
    arguments: Sequence[str] = (),
    seeds: int = 1,
) -> int:
    """Train both arms side by side, print what differs, and draw it under `out`.

    steps: generator steps of each arm; None leaves the script's own default. arguments: further
    ones for the script, such as ["--width", "32"]. seeds: pairs of trainings. Each starts afresh:
    what an earlier demo left in `out` is deleted. Returns 0, or the exit status of the first arm
    that failed.

    Raises ConfigError for fewer than one step or seed, and where `out` holds files that no demo
    made; TopKError where torch-mimicry or something that it imports is not installed.
    """
    for what, number in (("steps", steps), ("seeds", seeds)):
        if number is not None and number < 1:
            raise ConfigError(f"{what} is {number}; expected at least 1")
    _require(NEEDED)
    folder = out.absolute()
    _claim(folder, MADE)

    # The plain arm goes through the adapter too: torch-mimicry does not import on today's torch
    # without what the adapter stands in for.
    flags = ("--adapter=mimicry", f"--gamma={gamma}", f"--nu={nu}")
    script = (str(SCRIPT), *([] if steps is None else ["--steps", str(steps)]), *arguments)
    threads = max(1, (os.cpu_count() or 1) // 2)
    trial = Trial(folder, flags, (*script, "--seed", "{seed}", "--out", "{out}"), True, threads)
    runs = [Run(trial, arm, seed) for seed in range(seeds) for arm in arms_of([])]
    shown = runs[:2]  # of the first seed
    name, distance = distances(CLASSIFIER)
    with opened(trial), _environment(), _followed(runs):
        train(runs, len(shown), lambda run: None)
    for run, status, _ in failures(runs):
        print(
            f"topk demo: the {run.arm.name} arm failed with exit status {status}", file=sys.stderr
        )
        # killed by signal n: the shell's 128 + n, since a negative status cannot be exited with
        return status if status >= 0 else 128 - status

    metric = metric_of(METRIC).called(name, CLASSIFIER)
    command = shlex.join(["topk", *sys.argv[1:]])
    say(f"\n{written(folder, runs, [metric], distance, command)}", "stdout")
    grids = {run.arm.name: run.out / "samples.png" for run in shown}
    samples_figure(grids).savefig(folder / "samples.png", dpi=120)
    steps_figure(read_log(shown[1].folder / LOG)).savefig(folder / "topk.png", dpi=120)
    for what, file in (("samples", "samples.png"), ("k", "topk.png"), ("report", "report.md")):
        print(f"{what:8} {out / file}")
    return 0


def samples_figure(grids: Mapping[str, Path]) -> "Figure":
    """The arms' sample grids (PNG files, by the arm's name) side by side."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure = Figure(figsize=(5 * len(grids), 5.4), layout="constrained")
    panels = figure.subplots(1, len(grids), squeeze=False)[0]
    for panel, (arm, path) in zip(panels, grids.items(), strict=True):
        panel.imshow(imread(path))
        panel.set_title(arm)
        panel.axis("off")
    return figure


@contextmanager
def _followed(runs: Sequence[Run]) -> Iterator[None]:
    """Prints what runs print, as they do, each line behind its arm's name."""
    ended = threading.Event()
    read = dict.fromkeys(runs, 0)  # characters
    several = runs[-1].seed > 0
    labels = {run: f"{run.arm.name} {run.seed}" if several else run.arm.name for run in runs}

    def told(last: bool) -> None:
        for run in runs:
            said = run.said()
            whole = len(said) if last else said.rfind("\n") + 1
            for line in said[read[run] : whole].splitlines():
                print(f"[{labels[run]}] {line}", flush=True)
            read[run] = max(read[run], whole)

    def follow() -> None:
        while not ended.wait(0.5):
            told(last=False)
        told(last=True)

    for run in runs:
        print(f"[{labels[run]}] $ {shlex.join(['topk', *run.command()[5:]])}", flush=True)
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _environment() -> Iterator[None]:
    """That of the arms: their settings are the demo's.

    Passive, because on a busy machine OpenMP threads that spin for each other make an epoch up to
    ten times slower.
    """
    before = dict(os.environ)
    kept = ("TOPK_TRACE_PLUGINS", "TOPK_DISABLE_PLUGINS")
    for name in [name for name in before if name.startswith("TOPK_") and name not in kept]:
        del os.environ[name]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _require(modules: Iterable[str]) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise TopKError(
            f"topk demo needs {' and '.join(missing)}, which is not installed: {INSTALL}"
        )


def _claim(out: Path, names: Sequence[str]) -> None:
    """Delete in the folder `out` what an earlier demo left under `names`.

    Raises ConfigError where something of those names is there and no demo made it.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is no folder; choose another one")
    found = [out / name for name in names if (out / name).exists()]
    if found and not _is_demo(out):
        raise ConfigError(
            f"--out: {found[0]} is there and no demo made it; expected a folder of an earlier "
            "demo, or none: choose another one"
        )
    for path in reversed(found):  # the trial last: it says whose the others are
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_demo(out: Path) -> bool:
    """Whether the trial in a folder is of the demo's script."""
    try:
        script = json.loads((out / TRIAL).read_text())["script"]
        return Path(script[0]).name == SCRIPT.name
    except (OSError, ValueError, LookupError, TypeError):
        return False
