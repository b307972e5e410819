"""Runs of several small jobs."""

import shutil
from pathlib import Path

import pytest
from small_runs import request

from topk_plugin.reference.mixture import training as mixtures
from topk_plugin.reference.runs import reproduce


@pytest.fixture(autouse=True)
def small_stacks(monkeypatch):
    """So that a run has several jobs."""
    monkeypatch.setattr(mixtures, "STACK", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixtures, "STACK", 2)
        return reproduce(request(tmp_path_factory.mktemp("runs") / "undisturbed"))


@pytest.fixture
def unfinished(tmp_path, undisturbed) -> Path:
    """A copy of the run, whose first job is not marked as ended."""
    out = shutil.copytree(undisturbed, tmp_path / "run")
    (out / "jobs" / "000" / "done").unlink()
    return out
