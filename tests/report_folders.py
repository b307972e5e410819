"""Folders of runs with rows by hand, for tests of their reports."""

import itertools
import json

import pytest

from topk_plugin.reference import models, report
from topk_plugin.reference.report import folder as folders
from topk_plugin.reference.report import page

for needed in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(needed)

PAPER = {
    ("high_quality", 25, "gan"): 85.6,
    ("high_quality", 25, "top-k"): 95.5,
    ("trapezoid", 4, "meg"): 0.401,
    ("trapezoid", 4, "top-k+meg"): 0.478,
    ("fid", 32, "dcgan"): 38.09,
    ("fid", 32, "top-k+dcgan"): 35.62,
    ("fid", 32, "sngan"): 21.36,
    ("fid", 32, "sagan"): 19.02,
    ("fid", 32, "top-k+sagan"): 17.93,
    ("fid", 32, "critic"): 27.44,
    ("fid", 128, "sagan-128"): 19.98,
    ("fid", 128, "top-k+sagan-128"): 18.44,
    ("fid", 32, "icr-biggan"): 9.21,
    ("fid", 32, "top-k+icr-biggan"): 8.57,
}

SETTINGS = {"iterations": 100, "gamma": 0.99, "nu": 0.5}


def write(folder, experiment, rows, **changes):
    """A run's folder, one job a seed."""
    about = {
        "experiment": experiment,
        "preset": "short",
        "settings": SETTINGS | {"spacing": 1.0, "std": 0.05, "dataset": "mnist"},
        "cells": sorted({row["cell"] for row in rows}),
        "arms": list(dict.fromkeys(row["arm"] for row in rows)),
        "seeds": 1 + max((row["seed"] for row in rows), default=0),
        "device": "cpu",
        "versions": {"topk_plugin": "0.1.0", "torch": "2.14.1"},
        "command": f"topk reproduce {experiment} --preset short",
        "data": None,
    } | changes
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(about))
    for seed in {row["seed"] for row in rows}:
        job = folder / "jobs" / f"seed-{seed}"
        job.mkdir(parents=True)
        lines = [json.dumps(row) + "\n" for row in rows if row["seed"] == seed]
        (job / "metrics.jsonl").write_text("".join(lines))
    return folder


def score(cell, arm, seed, high_quality, iteration=100, **more):
    row = {"cell": cell, "arm": arm, "seed": seed, "iteration": iteration, "kind": "score"}
    return row | {"high_quality": high_quality, "modes": 100.0} | more


def proof(cell, arm, seed, dropped=640):
    row = {"cell": cell, "arm": arm, "seed": seed, "iteration": 100, "kind": "topk"}
    return row | {"steps": 100, "dropped": dropped, "direction": "high", "last_k": 192, "epochs": 5}


GAN, TOPK = (81.0, 79.0, 80.0), (83.0, 82.0, 84.0)


def table1():
    rows = []
    for seed in range(3):
        for arm, end in (("gan", GAN[seed]), ("top-k", TOPK[seed])):
            rows.append(score(25, arm, seed, end / 2, iteration=50))
            rows.append(score(25, arm, seed, end))
            if seed == 0:
                points = [[0.1, -0.2], [1.0, 1.0], [7.0, 0.0]]
                sample = {"cell": 25, "arm": arm, "seed": 0, "iteration": 100, "kind": "samples"}
                rows.append(sample | {"points": points})
        rows.append(proof(25, "top-k", seed))
    return rows


COSINES = {"top-k": [-0.2, 0.0, 0.1, 0.2, 0.5], "bottom-k": [-0.4, -0.3, -0.2, -0.1, 0.1]}
ARROWS = [[0.1, 0.0, -0.002, 0.0], [1.2, 1.0, 0.001, 0.0], [-0.9, 0.0, 0.0, 0.004]]


def probe():
    rows = []
    for seed, shift in enumerate((-0.05, 0.0, 0.05)):
        row = {"cell": 25, "arm": "gan", "seed": seed, "iteration": 100}
        for update, cosines in COSINES.items():
            for number, cosine in enumerate(cosines):
                here = {"update": update, "bin": number, "count": 20}
                values = {"cosine": cosine + shift, "change": -1e-3 * (cosine + shift)}
                rows.append(row | {"kind": "movement"} | here | values)
            if seed == 0:
                rows.append(row | {"kind": "arrows", "update": update, "points": ARROWS})
    return rows


def table2():
    rows = []
    for arm, area in (("meg", 0.40), ("top-k+meg", 0.45), ("bigan", 0.35)):
        scores = ("cross-entropy",) if arm == "bigan" else ("energy", "input-gradient norm")
        for seed in range(2):
            for iteration in (60, 120):
                row = {"cell": 4, "arm": arm, "seed": seed, "iteration": iteration, "kind": "score"}
                row |= {"iterations": 120, "chance": 0.35}
                for name in scores:
                    part = iteration / 120
                    areas = {
                        "average_precision": part * (area + seed / 100),
                        "trapezoid": part * (area + seed / 50),
                    }
                    rows.append(row | {"score": name} | areas)
            if arm == "top-k+meg":
                rows.append(proof(4, arm, seed) | {"iteration": 120, "iterations": 120})
    return rows


ALIKE = {
    "score": "FID", "version": "pytorch-fid 0.3.0", "features": "Inception",
    "features_digest": "6726825d", "data": "CIFAR-10, training part", "data_digest": "cafe",
    "real": 50_000, "fake": 50_000, "average": 0.0, "nonfinite": 0,
}  # fmt: skip


def tables3(folder):
    """Of a folder of Table 3, all; the last one is top-k's counts."""
    return [block for block in blocks(folder) if isinstance(block, report.Table)]


def table3(**changes):
    rows = []
    for arm, distance in (("dcgan", 38.0), ("top-k+dcgan", 36.0), ("sngan", 21.0)):
        for seed in range(2):
            row = {"cell": 32, "arm": arm, "seed": seed, "iterations": 100}
            for iteration in (50, 100):
                value = distance + seed + (100 - iteration) / 10
                known = row | {"iteration": iteration, "kind": "score", "fid": value}
                rows.append(known | ALIKE | changes)
            sheet = {"iteration": 100, "kind": "sheet", "file": f"{arm}.png"}
            rows.append(row | sheet)
            if "top-k" in arm:
                rows.append(proof(32, arm, seed) | {"iterations": 100})
    return rows


def blocks(folder):
    run = folders.read_run(folder)
    yield from page.header(run)
    yield from page.SECTIONS[run.about.trainer](run, PAPER)


def tables(folder):
    """Those before the first figure, which is then not drawn."""
    words = itertools.takewhile(lambda block: not isinstance(block, report.Drawing), blocks(folder))
    return [block for block in words if isinstance(block, report.Table)]


def text(folder):
    words = itertools.takewhile(lambda block: not isinstance(block, report.Drawing), blocks(folder))
    return "\n".join(block for block in words if isinstance(block, str))


def drawing(folder, name):
    drawings = (block for block in blocks(folder) if isinstance(block, report.Drawing))
    return next(block.figure for block in drawings if block.name == name)


ABLATION = {
    "sagan": (19.0, 20.0, 21.0),
    "top-k+sagan": (18.0, 18.5, 19.0),
    "gamma=0.5": (17.0, 17.5, 18.0),
    "nu=0.9": (18.5, 18.0, 19.5),
    "critic": (28.0, 27.0, 29.0),
    "both": (28.5, 28.0, 30.0),
}


def table5(of_arms=ABLATION, cell=32, **changes):
    rows = []
    for arm, ends in of_arms.items():
        for seed, end in enumerate(ends):
            row = {"cell": cell, "arm": arm, "seed": seed, "iterations": 100, "iteration": 100}
            for iteration, value in ((50, 2 * end), (100, end)):
                known = row | {"iteration": iteration, "kind": "score", "fid": value}
                rows.append(known | ALIKE | changes)
            for of in models.ARMS[arm].topk:
                steps = {"generator": 100, "critic": 500}[of]
                rows.append(row | proof(cell, arm, seed) | {"of": of, "steps": steps})
    return rows
