"""Runs scripts under `topk run`, or plainly, in processes of their own that share one import.

A server imports torch once and forks for each run, which then costs a tenth of a second.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_SERVER = """
import atexit, gc, json, multiprocessing.process, os, runpy, signal, sys, threading
import torch
import topk_plugin.cli

gc.collect()
gc.freeze()  # what was imported: collections in each run would go over it, and copy its pages
for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
signal.alarm(240)
job = json.loads(line)
os.chdir(job["cwd"])
multiprocessing.process.ORIGINAL_DIR = job["cwd"]
os.environ.update(job["env"])
sys.path[1:1] = job["path"]  # the first entry becomes the folder of the script
for number, name in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
status = 0
try:
    if job["plain"]:
        sys.argv = job["arguments"]
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        status = topk_plugin.cli.main(job["arguments"])
except SystemExit as stop:
    if not isinstance(stop.code, int | None):
        raise
    status = stop.code or 0
# what the interpreter does as it ends, without its second of tearing torch down
threading._shutdown()
atexit._run_exitfuncs()
for stream in (sys.stdout, sys.stderr):
    try:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    except Exception:
        status = 120
os._exit(status)
"""

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TOPK_")}
# the same bits on every machine; what CUDA does is shown by the tests that are marked gpu
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Done(NamedTuple):
    """What a finished run left."""

    status: int
    out: str
    err: str


def topk_run(
    folder: Path,
    *arguments: str,
    flags: Sequence[str] = (),
    critic: str = "gan:Critic",
    env: Mapping[str, str] | None = None,
) -> Done:
    """``topk run --critic CRITIC FLAGS -- ARGUMENTS`` in ``folder``."""
    return run(folder, ["run", "--critic", critic, *flags, "--", *arguments], env=env)


def plain_run(folder: Path, *arguments: str) -> Done:
    """``python ARGUMENTS`` in ``folder``, with torch imported already."""
    return run(folder, list(arguments), plain=True)


def run(
    folder: Path,
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    plain: bool = False,
    preload: Sequence[str] = (),
    path: Sequence[str] = (),
) -> Done:
    """``topk ARGUMENTS`` in ``folder``, with the modules of ``preload`` imported already.

    Args:
        path: folders for ``sys.path``, before all others but the script's own.
    """
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    job: dict[str, Any] = {"cwd": str(folder), "out": str(out), "err": str(err), "plain": plain}
    job["path"] = [*path]
    server = _server(tuple(preload))
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(job | {"arguments": [*arguments], "env": dict(env or {})}) + "\n")
    server.stdin.flush()
    return Done(int(server.stdout.readline()), out.read_text(), err.read_text())


@functools.cache
def _server(preload: tuple[str, ...]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    program = "".join(f"import {module}\n" for module in preload) + _SERVER
    # it ends by itself, at the end of its input
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT
    )
