"""`topk demo`: torch-mimicry's own SN-GAN trainer, without and with top-k from the same seed.

`sngan_digits.py` beside this file is written as a user of torch-mimicry would write it: it imports
nothing of this package. Both of its runs go through `topk run`, the first with top-k switched off.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topk_plugin.errors import ConfigError, TopKError
from topk_plugin.trial.steps import read_log, steps_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = Path(__file__).with_name("sngan_digits.py")
GAMMA = 0.85  # k reaches half of 32 after 4 of the script's 8 epochs
NU = 0.5

NEEDED = ("torch_mimicry", "torchvision", "skimage", "sklearn", "tensorboard", "matplotlib")
INSTALL = "pip install 'topk_plugin[demo]' && pip install --no-deps torch-mimicry==0.1.16"
MARKER = ".topk-demo"  # lies in the folder that is the demo's


def run_demo(
    out: Path,
    steps: int | None = None,
    gamma: float = GAMMA,
    nu: float = NU,
    arguments: Sequence[str] = (),
) -> int:
    """Train both arms, draw samples.png and topk.png under `out`, print a summary.

    steps: generator steps of each arm; None leaves the script's own default. arguments: further
    ones for the script, such as ["--width", "16"]. Each arm starts afresh in `out`/ARM: what an
    earlier demo left there is deleted. Returns 0, or the exit status of the first arm that failed.

    Raises ConfigError for fewer than one step, and where `out` holds such files that no demo made;
    TopKError where torch-mimicry or something that it imports is not installed.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps is {steps}; expected at least 1")
    _require(NEEDED)
    log = out / "topk.jsonl"
    _claim(out, ("plain", "top-k", "samples.png", "topk.png", log.name))

    # The plain arm goes through the adapter too: torch-mimicry does not import on today's torch
    # without what the adapter stands in for.
    launcher = [sys.executable, "-m", "topk_plugin", "run", "--adapter", "mimicry"]
    arms = {
        "plain": [*launcher, "--no-enabled"],
        "top-k": [*launcher, "--gamma", str(gamma), "--nu", str(nu), "--log", str(log)],
    }
    script = [str(SCRIPT), *([] if steps is None else ["--steps", str(steps)]), *arguments]
    seconds: dict[str, float] = {}
    for arm, prefix in arms.items():
        start = time.perf_counter()
        status = _stream(f"[{arm}] ", [*prefix, "--", *script, "--out", str(out / arm)])
        seconds[arm] = time.perf_counter() - start
        if status != 0:
            print(f"topk demo: the {arm} arm failed with exit status {status}", file=sys.stderr)
            return status

    records = read_log(log)
    grids = {arm: out / arm / "samples.png" for arm in arms}
    samples_figure(grids).savefig(out / "samples.png", dpi=120)
    steps_figure(records).savefig(out / "topk.png", dpi=120)

    print(f"time     plain {seconds['plain']:.0f} s, top-k {seconds['top-k']:.0f} s")
    first, last = records[0]["k"], records[-1]["k"]
    print(f"k        from {first} to {last} in {len(records)} generator steps")
    print(f"samples  {out / 'samples.png'}")
    print(f"figure   {out / 'topk.png'}")
    print(f"log      {log}")
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


def _stream(label: str, command: Sequence[str]) -> int:
    """Run a command, print it and its output line by line behind `label`; its exit status."""
    print(f"{label}$ {shlex.join(command)}", flush=True)
    # Unbuffered, so that progress shows while the child runs. Passive, because on a busy machine
    # OpenMP threads that spin for each other make an epoch up to ten times slower.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
    kept = ("TOPK_TRACE_PLUGINS", "TOPK_DISABLE_PLUGINS")
    for name in [name for name in environment if name.startswith("TOPK_") and name not in kept]:
        del environment[name]  # the arms' settings are the demo's
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout is not None  # Popen made the pipe
        for line in child.stdout:
            print(f"{label}{line}", end="", flush=True)
    # Killed by signal n: the shell's 128 + n, since a negative status cannot be exited with.
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _require(modules: Iterable[str]) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise TopKError(
            f"topk demo needs {' and '.join(missing)}, which is not installed: {INSTALL}"
        )


def _claim(out: Path, names: Sequence[str]) -> None:
    """Make the folder `out` and mark it; delete in it what an earlier demo left under `names`.

    Without this torch-mimicry would go on from the earlier demo's checkpoint. Raises ConfigError
    where something of those names is there and no demo made it.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is no folder; choose another one")
    found = [out / name for name in names if (out / name).exists()]
    if found and not (out / MARKER).exists():
        raise ConfigError(
            f"--out: {found[0]} is there and no demo made it; expected a folder of an earlier "
            "demo, or none: choose another one"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
