"""The paper's numbers, which are not what the report's tests are about."""

from dataclasses import replace

import pytest
from report_folders import PAPER

from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.report import page


@pytest.fixture(autouse=True)
def _paper(monkeypatch):
    """The report's tests are not about which numbers the paper has."""
    changes = {"title": "The experiment", "paper": PAPER, "open": ("gamma",)}
    known = {name: replace(experiment, **changes) for name, experiment in EXPERIMENTS.items()}
    monkeypatch.setattr(page, "EXPERIMENTS", known)
