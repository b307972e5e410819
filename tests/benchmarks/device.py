"""All that one device has to say of the package, within a time; ``tests/gpu.sh`` runs it.

    tests/gpu.sh [--minutes 12] [--device cpu --tiny] [--out FOLDER]

Each part is a process of its own, whose failure is its own, too. A part for which too little time
is left is skipped, one that takes longer is stopped, and one whose packages are missing is skipped;
the table says so. Writes gpu.json and gpu.md; exit status 1 where a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
AT_THE_END = 5.0
"""Seconds in which everything is written."""


@dataclass(frozen=True)
class Part:
    """Something to be run.

    Args:
        title, name: parts of one title share a table.
        least, most: seconds that it takes, and after which it is stopped.
        needs: modules.
    """

    title: str
    name: str
    command: Sequence[str]
    least: float
    most: float
    needs: Sequence[str] = ()


@dataclass
class Outcome:
    """What became of a part: it "ran", was "skipped" or "stopped", or it "failed"."""

    title: str
    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


OVERHEAD, IMAGES, TRAINER, TESTS = (
    "What top-k costs a generator step",
    "Images a second",
    "SAGAN at 128 pixels in its trainer",
    "Tests",
)


def marked_files() -> list[str]:
    """Test modules with tests that need a device."""
    files = (ROOT / "tests").rglob("test_*.py")
    return sorted(str(f) for f in files if "pytest.mark.gpu" in f.read_text(encoding="utf-8"))


def parts(device: str, tiny: bool) -> list[Part]:
    """What is run, in this order: what most is to be known first."""
    on_gpu = device == "cuda"
    overhead = [str(HERE / "overhead.py"), "--device", device, "--threads", "1"]
    images = [str(HERE / "images.py"), "--device", device]
    reference = ("sklearn", "scipy", "filelock")  # what the trainers of the experiments import
    tests = Part(
        TESTS,
        "marked gpu",
        # as each of them is told at once, those that were done are known if it is stopped
        ["-u", "-m", "pytest", "-m", "gpu", "-v", "-o", "addopts=--import-mode=importlib"]
        + ["-p", "no:cacheprovider", *marked_files()],
        20,
        300,
        ("pytest", *reference),
    )
    if tiny:
        small = ["--width", "0.0625", "--rounds", "2"]
        quick = [*overhead, "--model", "tiny", "--rounds", "10", "--steps", "2"]
        return [
            Part(OVERHEAD, "tiny, eager", quick, 3, 300),
            *([Part(OVERHEAD, "tiny, graph", [*quick, "--made", "graph"], 3, 300)] * on_gpu),
            Part(
                OVERHEAD, "tiny, compiled",
                [*quick, "--made", "compiled", "--backend", "aot_eager"], 3, 300,
            ),
            Part(IMAGES, "all", [*images, *small, "--batch", "4", "--no-peaks"], 3, 300),
            Part(
                TRAINER, "batch 8", [*images, "--trainer", *small, "--batch", "8"],
                3, 300, reference,
            ),
            tests,
        ]  # fmt: skip
    timed = ["--rounds", "200", "--steps", "20", "--seconds"]
    every = [
        Part(OVERHEAD, f"{model}, {made}", [*overhead, "--model", model, "--made", made, *timed, s],
             least, most)
        for made, s, least, most in (
            ("eager", "40", 30, 120), ("graph", "15", 20, 60), ("compiled", "20", 60, 180)
        )
        for model in ("dcgan", "mlp")
    ]  # fmt: skip
    speeds = [
        Part(
            IMAGES, model, [*images, "--models", model, "--rounds", "50", "--seconds", "15"], 20, 90
        )
        for model in ("sngan", "sagan", "biggan")
    ]
    memory = Part(TRAINER, "batch 256", [*images, "--trainer", "--batch", "256"], 20, 90, reference)
    return [*every[:4], *speeds, memory, tests, *every[4:]]


def run(part: Part, left: float, folder: Path) -> Outcome:
    """Runs it, and shows what it said.

    Args:
        left: seconds.
        folder: for its numbers.
    """
    outcome = Outcome(part.title, part.name, "skipped")
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        outcome.reason = f"not installed: {', '.join(missing)}"
        return outcome
    if left < part.least:
        outcome.reason = f"takes {part.least:.0f} s, and {max(left, 0):.0f} s were left"
        return outcome
    numbers, start = folder / "numbers.json", time.monotonic()
    numbers.unlink(missing_ok=True)
    command = [sys.executable, *part.command]
    if part.title != TESTS:
        command += ["--json", str(numbers)]
    print(f"\n--- {part.title}: {part.name}", flush=True)
    with (folder / "said").open("w+", encoding="utf-8") as said:
        limit = min(left, part.most)
        status = _wait(command, said.fileno(), limit)
        said.seek(0)
        text = said.read()
    print(text, flush=True)
    outcome.seconds = time.monotonic() - start
    outcome.status = "stopped" if status is None else "failed" if status else "ran"
    if status is None:
        outcome.reason = f"after {limit:.0f} s"
    elif status:
        last = text.strip().splitlines()[-1:] or [""]
        outcome.reason = f"exit status {status}: {last[0][:200]}"
    if part.title == TESTS:
        outcome.rows = [told(text)]
    elif numbers.exists():
        outcome.rows = json.loads(numbers.read_text())
    return outcome


def _wait(command: Sequence[str], said: int, limit: float) -> int | None:
    """The exit status, or None after ``limit`` seconds; its own processes end with it."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def told(text: str) -> dict[str, Any]:
    """What became of the tests of which ``pytest -v`` told, and which of them failed."""
    found = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE)
    counts = Counter(result for _, result in found)
    return {
        "passed": counts["PASSED"],
        "skipped": counts["SKIPPED"],
        "failed": [name for name, result in found if result in ("FAILED", "ERROR")],
    }


# --- what is written ----------------------------------------------------------------------------


def interval(numbers: Sequence[float] | None, form: str) -> str:
    if not numbers:
        return ""
    return "{} [{}, {}]".format(*(form.format(number) for number in numbers))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def rows_of(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of one title's table."""
    if title == OVERHEAD:
        return table(
            ["networks", "step", "way in", "ms", "/ gather by hand", "/ no top-k", "us more"],
            [
                [r["model"], r["kind"] or r["made"], r["arm"], f"{r['ms']:.2f}",
                 interval(r.get("/ gather by hand"), "{:.3f}"), interval(r["/ nothing"], "{:.3f}"),
                 interval(r["us more"], "{:.0f}")]
                for r in rows
            ],
        )  # fmt: skip
    if title == IMAGES:
        return table(
            ["model", "networks", "memory format", "images/s", "MiB", "ours is faster"],
            [
                [r["model"], r["whose"], r["layout"], f"{r['images/s']:.0f}",
                 f"{r['MiB']:.0f}" if r["MiB"] else "", interval(r["ours is faster"], "{:.2f}")]
                for r in rows
            ],
        )  # fmt: skip
    if title == TRAINER:
        return table(
            ["batch, in four parts", "MiB at most", "s an iteration"],
            [[str(r["batch"]), f"{r['MiB']:.0f}", f"{r['s']:.2f}"] for r in rows],
        )
    return table(
        ["passed", "skipped", "failed"],
        [[str(r["passed"]), str(r["skipped"]), ", ".join(r["failed"]) or "none"] for r in rows],
    )


def page(about: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The Markdown."""
    lines = [
        f"# {about['device']}",
        "",
        f"torch {about['torch']}, Python {about['python']}, {about['date']}"
        + ("; tiny sizes, which say nothing of costs" if about["tiny"] else "")
        + ". Medians with their 95% intervals. Written by `tests/gpu.sh`.",
        "",
    ]
    for title in (OVERHEAD, IMAGES, TRAINER, TESTS):
        rows = [row for o in outcomes if o.title == title for row in o.rows]
        if rows:
            lines += [f"## {title}", "", *rows_of(title, rows)]
        if title == IMAGES and rows and all(row["whose"] == "ours" for row in rows):
            lines += ["torch-mimicry is not installed there.", ""]
    lines += ["## Parts", ""]
    lines += table(
        ["part", "", "seconds", "why"],
        [[f"{o.title}: {o.name}", o.status, f"{o.seconds:.0f}", o.reason.replace("|", "\\|")]
         for o in outcomes],
    )  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    has_device = torch.cuda.is_available()
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if has_device else "cpu"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes; always where there is no GPU")
    parser.add_argument("--minutes", type=float, default=12.0, help="in which it ends")
    parser.add_argument("--out", type=Path, help="folder; that of the benchmarks for a GPU")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes - AT_THE_END
    tiny = options.tiny or options.device == "cpu"
    if options.out is None and tiny:
        parser.error("name a folder, --out FOLDER: tiny sizes are not what is committed")
    out = options.out or HERE
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else "CPU, " + platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "tiny": tiny,
    }
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(options.device, tiny):
            outcomes.append(run(part, deadline - time.monotonic(), Path(folder)))
            # anew after each part: a machine may be taken away
            content = {**about, "parts": [asdict(outcome) for outcome in outcomes]}
            (out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            (out / "gpu.md").write_text(page(about, outcomes), encoding="utf-8")
    print(page(about, outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
