"""`topk reproduce`: trains what a result of the paper needs, as far as it is not there yet."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from topk_plugin.errors import ConfigError, unknown_name
from topk_plugin.files import write_atomically
from topk_plugin.reference.experiments import EXPERIMENTS, RESULTS
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.files import as_json, locked
from topk_plugin.reference.runs.folder import RUN, jobs_left, make_folder, opened
from topk_plugin.reference.runs.machine import chosen_device, cores
from topk_plugin.reference.runs.records import Job, Member, Tell
from topk_plugin.reference.runs.request import Request, chosen, settings_of, whole
from topk_plugin.reference.runs.workers import train_all


def reproduce(
    request: Request,
    show: Callable[[Sequence[Job]], Any] | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Path:
    """Train what a result of the paper needs, as far as it is not there yet; returns its folder.

    Args:
        show: makes of the jobs a context manager that gives the function which
            :func:`train_all` calls; without it nothing is shown.
        tell: called with what is done before training, how much of it, and of how much.

    Raises:
        ConfigError: an unknown result, preset, setting, cell or arm, a folder that cannot be
            written or is something else, or data that are missing.
        ResumeMismatch: the folder holds a run of other settings.
        RunError: see :func:`train`.
    """
    if request.result not in RESULTS:
        raise unknown_name(f"topk reproduce {request.result}", "result", request.result, RESULTS)
    name = RESULTS[request.result]
    experiment = EXPERIMENTS[name]
    settings = settings_of(experiment, request.preset, request.overrides)
    preset = experiment.presets[request.preset]
    seeds = preset.seeds if request.seeds is None else request.seeds
    for flag, number in (("--seeds", seeds), ("--workers", request.workers)):
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: found {number}, expected at least 1")
    cells = chosen("--cells", request.cells or preset.cells or experiment.cells, experiment.cells)
    wanted = whole(request.arms or experiment.arms, experiment.arms)
    arms = chosen("--arms", wanted, experiment.arms)
    device = chosen_device(request.device)
    module = importlib.import_module(f"topk_plugin.reference.{experiment.trainer}")
    if ranks.launched() > 1 and not getattr(module, "DISTRIBUTED", False):
        raise ConfigError(
            f"torchrun: found {ranks.launched()} processes, expected one: {experiment.title} "
            "trains many small networks; leave torchrun out, --workers says how many at a time"
        )
    plan = {
        "experiment": name,
        "preset": request.preset,
        "settings": dataclasses.asdict(settings),
        "cells": list(cells),
        "arms": list(arms),
        "seeds": seeds,
        "device": device.type,
        "ranks": ranks.launched(),
    }
    out = request.out or Path("topk-runs") / f"{name}-{request.preset}"
    workers = request.workers or (cores() if device.type == "cpu" else 1)
    members = [Member(cell, arm, seed) for seed in range(seeds) for cell in cells for arm in arms]
    asked = Job(
        out / "jobs", experiment.trainer, settings, members, device.type, request.tensorboard
    )  # fmt: skip

    def stacks(new: list[Member]) -> list[list[Member]]:
        found: list[list[Member]] = module.stacks(settings, new, device, workers)
        return found

    with ranks.group(device):
        prepare = getattr(module, "prepare", None)
        first = ranks.rank() == 0
        telling = tell if first else lambda what, done, total: None
        plan["data"] = None
        if prepare is not None:
            plan["data"] = prepare(settings, cells, arms, device, telling)
        ranks.at_first(lambda: make_folder(out))
        with locked(out, 0):
            run = ranks.at_first(lambda: opened(out, plan, request, members, experiment, stacks))
            left = ranks.at_first(lambda: jobs_left(run, asked))
            if not left:
                return out
            started = time.monotonic()
            try:
                if show is None or not first:
                    train_all(left, workers, lambda index, done, total: None)
                else:
                    with show(left) as shown:
                        train_all(left, workers, shown)
            finally:
                run["seconds"] += time.monotonic() - started
                if first:
                    write_atomically(out / RUN, as_json(run))
    return out
