"""Arms, cells and numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from topk_plugin.reference import models
from topk_plugin.reference.models import ARMS as TRAINED
from topk_plugin.reference.report.folder import Run, setting
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.statistics import without_topk

ARMS = {
    "gan": "GAN",
    "top-k": "top-k GAN",
    "bigan": "BiGAN",
    "top-k+bigan": "top-k BiGAN",
    "meg": "MEG",
    "top-k+meg": "top-k MEG",
    **{
        before + name: words + model.title
        for name, model in models.MODELS.items()
        for before, words in (("", ""), ("top-k+", "top-k "))
    },
    **{n: f"gamma {arm.gamma:g}" for n, arm in models.ARMS.items() if arm.gamma is not None},
    **{n: f"nu {arm.nu:g}" for n, arm in models.ARMS.items() if arm.nu is not None},
    "restore-5-15": "gamma 0.95, restored 5:15",
    "restore-10-20": "gamma 0.95, restored 10:20",
    "restore-30-40": "gamma 0.95, restored 30:40",
    "restore-15-25": "gamma 0.99, restored 15:25",
    "critic": "top-k on the critic (D)",
    "both": "top-k on both (G & D)",
}
"""Arms by their names in the paper; others keep their own."""


def in_pairs(members: Iterable[Member]) -> list[str]:
    """The members' arms, each once, a baseline followed by its top-k arms."""
    arms = list(dict.fromkeys(member.arm for member in members))
    families = list(dict.fromkeys(map(without_topk, arms)))
    return sorted(arms, key=lambda arm: (families.index(base := without_topk(arm)), arm != base))


def called(cell: int, name: str) -> str:
    """A cell in words: "25 modes", "held-out digit 4"."""
    return f"{cell} {name}" if name == "modes" else f"{name} {cell}"


def span(values: Iterable[Any]) -> str:
    """Words as they are; numbers from the least to the most."""
    known = sorted(set(values))
    shown = [value if isinstance(value, str) else f"{value:,}" for value in known]
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def named(run: Run, member: Member) -> str:
    """A member of a run in words."""
    arm = labels_of(run).get(member.arm, member.arm)
    return f"{called(member.cell, run.about.cell)}, {arm}, seed {member.seed}"


BASELINE, REFERENCE = "sagan", "top-k+sagan"
"""Arms of Table 5: what all others are compared with, and what they differ from in one thing."""

PROPOSED = (0.99, 0.5)
"""Gamma and nu (paper, section 5.2)."""


def labels_of(run: Run) -> Mapping[str, str]:
    """A run's arms in words."""
    if not run.about.ablation:
        return ARMS
    gamma, nu = gamma_and_nu(run)
    reference = f"gamma {gamma:g}, nu {nu:g} ({role(run)})"
    return ARMS | {BASELINE: "baseline (no top-k)", REFERENCE: reference}


def gamma_and_nu(run: Run) -> tuple[float, float]:
    """Those of arms that do not have their own."""
    return setting(run, "gamma"), setting(run, "nu")


def proposed(run: Run) -> tuple[float, float]:
    """The gamma and the nu that the paper has for an experiment."""
    settings = run.about.presets["paper"].settings
    return settings.get("gamma", PROPOSED[0]), settings.get("nu", PROPOSED[1])


def role(run: Run) -> str:
    """What the arm with the run's gamma and nu is, Table 5's reference."""
    return "proposed" if gamma_and_nu(run) == proposed(run) else "reference"


def gated(arm: str) -> tuple[str, ...]:
    """In whose loss an arm has top-k."""
    if arm in TRAINED:
        return TRAINED[arm].topk
    return ("generator",) if without_topk(arm) != arm else ()
