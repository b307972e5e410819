"""The folder of a run: ``run.json``, which says what was asked for, and what may be added to it."""

from __future__ import annotations

import json
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from topk_plugin.errors import ConfigError, ResumeMismatch, RunError
from topk_plugin.files import PARTIAL, write_atomically
from topk_plugin.reference.experiments import Experiment
from topk_plugin.reference.runs.files import as_json
from topk_plugin.reference.runs.job import is_done
from topk_plugin.reference.runs.machine import name_of, versions
from topk_plugin.reference.runs.records import Job, Member
from topk_plugin.reference.runs.request import Request

RUN = "run.json"

GROWS = ("cells", "arms", "seeds")
"""What a later command may add to a run: what is there stays, and only the new is trained."""

WHERE = ("data", "download", "inception", "decoders")
"""Settings that say where data and weights lie, which may change: what they are is in the plan."""


def make_folder(out: Path) -> None:
    """Makes the folder of a run.

    Raises:
        ConfigError: it cannot be made or written, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out: found {out} ({error.strerror}), expected a folder that can be written; "
            "choose another one"
        ) from None
    if not (out / RUN).exists():
        own = "jobs", ".lock", RUN + PARTIAL
        others = sorted(path.name for path in out.iterdir() if path.name not in own)
        if others or any(out.glob("jobs/*")):
            raise ConfigError(
                f"--out: found {out} with {', '.join(others[:3]) or 'jobs'} in it and no run.json, "
                "expected an empty folder or one of an earlier run; choose another one"
            )


def _open(out: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run that a folder holds, or None.

    Raises:
        RunError: it is damaged.
        ResumeMismatch: a run of another plan.
    """
    file = out / RUN
    if not file.exists():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        run.setdefault("ranks", 1)  # runs of one process need not say so
        differ = [
            f"{key}: {run[key]!r} there, {value!r} now"
            for key, value in plan.items()
            if key not in ("settings", *GROWS) and run[key] != value
        ] + [
            f"{key}: {run['settings'].get(key)!r} there, {value!r} now"
            for key, value in plan["settings"].items()
            if key not in WHERE and run["settings"].get(key) != value
        ]
        run["seconds"] += 0.0
        if missing := [key for key in GROWS if key not in run]:
            raise KeyError(missing[0])
        run["jobs"] = {
            folder: [Member(*member) for member in stack] for folder, stack in run["jobs"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file}: damaged ({type(error).__name__}: {error}), expected what an earlier run "
            "wrote; restore it, or choose another folder"
        ) from None
    if differ:
        raise ResumeMismatch(
            f"{out} holds a run of other settings:\n  "
            + "\n  ".join(differ)
            + "\nGive the settings of that run, or choose another folder: --out."
        )
    return typing.cast(dict[str, Any], run)


def opened(
    out: Path,
    plan: Mapping[str, Any],
    request: Request,
    members: Sequence[Member],
    experiment: Experiment,
    stacks: Callable[[list[Member]], list[list[Member]]],
) -> dict[str, Any]:
    """The run that a folder holds, with what is new in it, or a new one.

    Args:
        plan: what was asked for; what has to be the same in all commands of one run.
        request: the command's.
        members: everything that was asked for.
        experiment: the order of cells and arms.
        stacks: which new members are trained together.
    """
    run: dict[str, Any] = _open(out, plan) or {
        **plan,
        "device_name": name_of(torch.device(plan["device"])),
        "versions": versions(),
        "command": request.command,
        "changed": sorted(request.overrides),
        "seconds": 0.0,
        "jobs": {},
    }
    known = {member for stack in run["jobs"].values() for member in stack}
    new = [member for member in members if member not in known]
    if new:
        first = len(run["jobs"])
        run["jobs"] |= {f"{first + i:03d}": stack for i, stack in enumerate(stacks(new))}
        if known:
            run["command"] += f"; {request.command}"
            run["seeds"] = max(run["seeds"], plan["seeds"])
            for name, order in (("cells", experiment.cells), ("arms", experiment.arms)):
                run[name] = [one for one in order if one in {*run[name], *plan[name]}]
        write_atomically(out / RUN, as_json(run))
    return run


def jobs_left(run: Mapping[str, Any], asked: Job) -> list[Job]:
    """Jobs of a run that have not ended and train some of the members that were asked for.

    Args:
        asked: its folder holds the jobs, its members are those; the rest is every job's.
    """
    wanted = set(asked.members)
    jobs = [
        asked._replace(folder=asked.folder / folder, members=stack)
        for folder, stack in run["jobs"].items()
        if not wanted.isdisjoint(stack)
    ]
    return [job for job in jobs if not is_done(job)]
