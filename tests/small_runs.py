"""What tests of runs share: small ones of Table 1, and how they are compared."""

import json
import re
from pathlib import Path

import torch

from topk_plugin.reference.runs import Request, load_checkpoint

CPU = torch.device("cpu")
TINY = {
    "iterations": "12", "measure_every": "4", "batch": "8", "hidden": "8", "samples": "50",
    "decay_every": "2", "gamma": "0.8",
}  # fmt: skip
DIGITS = {
    "meg_epochs": "2", "meg_dim": "8", "meg_latent": "4", "meg_energy_steps": "2",
    "measure_every": "3",
}  # fmt: skip


class Killed(BaseException):
    """What ends a process at once, as far as a test can have it."""


def request(out: Path, overrides=None, **changes) -> Request:
    """Two jobs of table1, trained in this process."""
    wanted = Request("table1", seeds=2, cells=[25], overrides=TINY | (overrides or {}), out=out,
                     device="cpu", workers=1)  # fmt: skip
    return wanted._replace(**changes)


def equal(a, b) -> bool:
    """To the last bit, in whatever a checkpoint may hold."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def assert_same_run(found: Path, expected: Path) -> None:
    """The same jobs, ended, with the same rows and checkpoints."""
    names = sorted(path.name for path in (expected / "jobs").iterdir())
    assert sorted(path.name for path in (found / "jobs").iterdir()) == names
    for mine, its in ((found / "jobs" / name, expected / "jobs" / name) for name in names):
        assert (mine / "done").exists()
        assert not list(mine.glob("*.partial"))
        assert (mine / "metrics.jsonl").read_bytes() == (its / "metrics.jsonl").read_bytes()
        assert equal(*(load_checkpoint(job / "checkpoint.pt", CPU) for job in (mine, its)))


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but for the locks and the seconds that were spent on the run."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {
        str(path.relative_to(folder)): re.sub(rb'"seconds": [\d.]+', b"", path.read_bytes())
        for path in files
    }


def rows_of(job: Path) -> list[dict]:
    return [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]


class ShownTo:
    """The context manager that ``reproduce`` takes: calls go to ``function``."""

    def __init__(self, function) -> None:
        self.function = function

    def __enter__(self):
        return self.function

    def __exit__(self, *error) -> None:
        pass
