"""`topk report`: statistics against their definitions, tables and figures against the rows."""

import doctest
import itertools
import json
import math
import random
import statistics as plain
import sys
from dataclasses import replace

import pytest

from topk_plugin.errors import ConfigError, RunError, TopKError
from topk_plugin.reference import models, report, statistics
from topk_plugin.reference.experiments import EXPERIMENTS, RESULTS
from topk_plugin.reference.models import ABLATED, MODELS
from topk_plugin.reference.report import (
    arms,
    claims,
    figures,
    mixture_figures,
    mixtures,
    page,
)
from topk_plugin.reference.report import folder as folders
from topk_plugin.reference.runs import Member
from topk_plugin.reference.study import VARIANTS

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


@pytest.fixture(autouse=True)
def _paper(monkeypatch):
    """The report's tests are not about which numbers the paper has."""
    changes = {"title": "The experiment", "paper": PAPER, "open": ("gamma",)}
    known = {name: replace(experiment, **changes) for name, experiment in EXPERIMENTS.items()}
    monkeypatch.setattr(page, "EXPERIMENTS", known)


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


# --- statistics ---------------------------------------------------------------------------------


def test_paired_difference_by_hand():
    found = statistics.paired_difference(
        {0: 81.0, 1: 79.0, 2: 80.0, 7: 0.0}, {2: 84.0, 1: 82.0, 0: 83.0, 8: 99.0}
    )
    assert found.n == 3  # seeds 7 and 8 have no partner
    assert found.mean == 3.0  # of 2, 3 and 4
    assert found.std == 1.0
    half = 4.302653 / math.sqrt(3)  # Student's t with 2 degrees of freedom, from a table
    assert found.interval == pytest.approx((3 - half, 3 + half), abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_statistics_are_those_of_scipy_and_of_the_definition(n):
    from scipy import stats

    draws = random.Random(n)
    baseline = [draws.gauss(80, 5) for _ in range(n)]
    topk = [value + draws.gauss(2, 1) for value in baseline]
    found = statistics.summary(topk)
    assert found.mean == pytest.approx(sum(topk) / n)
    squares = sum((value - sum(topk) / n) ** 2 for value in topk)
    assert found.std == pytest.approx(math.sqrt(squares / (n - 1)))

    paired = statistics.paired_difference(dict(enumerate(baseline)), dict(enumerate(topk)))
    assert paired.interval == pytest.approx(
        tuple(stats.ttest_rel(topk, baseline).confidence_interval(0.95))
    )


def test_too_few_seeds_have_no_spread_and_no_interval():
    assert statistics.summary([]) is None
    assert statistics.summary([80.0]) == (1, 80.0, None, None)
    assert statistics.paired_difference({0: 1.0}, {0: 3.0}) == (1, 2.0, None, None)
    assert statistics.paired_difference({0: 1.0}, {1: 3.0}) is None


def test_the_example_in_the_documentation():
    assert doctest.testmod(statistics) == (0, 2)


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_its_own():
    found = statistics.Summary(3, -1e-5, 1e-6, (-2e-5, 1e-5))
    assert statistics.with_interval(found, 3) == "+0.000 [+0.000, +0.000]"
    assert statistics.with_interval(found._replace(mean=-0.0006), 3).startswith("-0.001 [")


def test_compare_pairs_arms_by_their_names():
    values = {Member(4, "meg", 0): 0.4, Member(4, "top-k+meg", 0): 0.5, Member(9, "meg", 0): 0.3}
    values |= {Member(4, "bigan", 0): 0.2}
    rows = statistics.compare(values, [4, 9], ["bigan", "meg", "top-k+meg"], "trapezoid", PAPER)
    assert [(row.cell, row.baseline_arm, row.topk_arm) for row in rows] == [
        (4, "bigan", "top-k+bigan"),
        (4, "meg", "top-k+meg"),
        (9, "bigan", "top-k+bigan"),
        (9, "meg", "top-k+meg"),
    ]
    bigan, meg, _, other = rows
    assert (bigan.baseline.mean, bigan.topk, bigan.difference) == (0.2, None, None)
    assert meg.difference.mean == pytest.approx(0.1)
    assert meg.paper == (0.401, 0.478)
    assert (other.baseline.mean, other.topk, other.paper) == (0.3, None, (None, None))


def test_a_seed_without_a_sample_in_a_bin_does_not_count_there():
    rows = [row for row in probe() if row["kind"] == "movement"]
    for row in rows:
        if (row["update"], row["bin"], row["seed"]) == ("top-k", 3, 2):
            row |= {"count": 0, "cosine": None, "change": None}
    found = claims.movement(rows, "cosine")
    assert found["top-k", 3].n == 2
    assert found["top-k", 3].mean == pytest.approx(plain.mean([0.15, 0.2]))
    assert found["top-k", 4].n == 3


# --- what is counted ----------------------------------------------------------------------------


def test_table1_by_hand(tmp_path):
    quality, modes, work = tables(write(tmp_path / "run", "table1", table1()))
    assert quality.title == "high-quality samples (%)"
    assert quality.columns[:3] == ["modes", "GAN", "top-k GAN"]
    assert quality.columns[5:] == ["paper: GAN", "paper: top-k GAN"]
    line = ["25", "80.0 ± 1.0", "83.0 ± 1.0", "+3.0 [+0.5, +5.5]", "3", "85.6", "95.5"]
    assert quality.rows == [line]
    assert modes.rows == [["25", "100.0 ± 0.0", "100.0 ± 0.0", "+0.0 [+0.0, +0.0]", "3", "-", "-"]]
    assert work.rows == [["25", "top-k GAN", "100", "640", "high", "192", "5"]]


def test_a_changed_row_changes_its_cells_and_no_other(tmp_path):
    before = tables(write(tmp_path / "before", "table1", table1()))
    rows = table1()
    [row] = [r for r in rows if (r["arm"], r["seed"], r["iteration"]) == ("top-k", 1, 100)
             and r["kind"] == "score"]  # fmt: skip
    row["high_quality"] = 94.0
    after = tables(write(tmp_path / "after", "table1", rows))
    assert before[1:] == after[1:]
    changed = [a != b for a, b in zip(before[0].rows[0], after[0].rows[0], strict=True)]
    assert changed == [False, False, True, True, False, False, False]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (None, "seed 2: unfinished: iteration 50 of 100"),
        ({"high_quality": math.nan}, "seed 2: failed: high_quality is nan at iteration 100"),
        ({"modes": None}, "seed 2: failed: modes is None at iteration 100"),
        ({"nonfinite": 10_000}, "seed 2: failed: 10,000 numbers are not finite at iteration 100"),
    ],
)
def test_a_member_that_has_not_ended_well_is_named_and_not_counted(tmp_path, change, why):
    rows = []
    for row in table1():
        if (row["arm"], row["seed"], row["iteration"]) == ("top-k", 2, 100):
            if change is None:
                continue
            if row["kind"] == "score":
                row |= change
        rows.append(row)
    folder = write(tmp_path / "run", "table1", rows)
    assert f"Left out: 1 of 6 members, which no number counts:\n- 25 modes, top-k GAN, {why}" in (
        text(folder)
    )
    quality = tables(folder)[0].rows[0]
    assert quality[:3] == ["25", "80.0 ± 1.0", "82.5 ± 0.7"]
    assert quality[4] == "3, 2; 2 paired"
    assert quality[3].startswith("+2.5 [")
    line = drawing(folder, "table1").axes[0].lines[1]
    assert line.get_ydata() == pytest.approx([82.5 / 2, 82.5])  # nor does a curve count it


def test_members_that_have_not_begun_or_lost_their_end(tmp_path):
    rows = [row for row in table1() if (row["arm"], row["seed"]) != ("gan", 1)]
    rows = [r for r in rows if (r["arm"], r["seed"], r["iteration"], r["kind"])
            != ("top-k", 2, 100, "score")]  # fmt: skip
    found = text(write(tmp_path / "run", "table1", rows))
    assert "25 modes, GAN, seed 1: not begun" in found
    assert "25 modes, top-k GAN, seed 2: damaged: no score at the end" in found


def test_a_run_that_nobody_has_ended_is_a_report_without_numbers(tmp_path):
    rows = [row for row in table1() if row["iteration"] == 50]
    folder = write(tmp_path / "run", "table1", rows)
    assert report.report([folder]) == 0
    assert "Left out: 6 of 6 members" in text(folder)
    assert tables(folder)[0].rows == [["25", "-", "-", "-", "0", "85.6", "95.5"]]
    assert not list(folder.glob("*.png"))


def test_of_a_repeated_row_the_later_one_counts(tmp_path):
    rows = table1()
    rows.insert(0, score(25, "gan", 0, 11.0))
    assert tables(write(tmp_path / "run", "table1", rows))[0].rows[0][1] == "80.0 ± 1.0"


def test_a_line_that_a_killed_job_cut_is_named_and_left_out(tmp_path):
    folder = write(tmp_path / "run", "table1", table1())
    with (folder / "jobs/seed-1/metrics.jsonl").open("a") as file:
        file.write('{"cell": 25, "arm": "g')
    assert "last line of jobs/seed-1/metrics.jsonl is not complete" in text(folder)
    assert tables(folder)[0].rows[0][4] == "3"


def test_one_seed_has_neither_spread_nor_interval(tmp_path):
    rows = [row for row in table1() if row["seed"] == 0]
    assert tables(write(tmp_path / "run", "table1", rows))[0].rows == [
        ["25", "81.0", "83.0", "+2.0", "1", "85.6", "95.5"]
    ]


@pytest.mark.parametrize(("dropped", "why"), [(0, "0 rows"), (None, "no record of top-k")])
def test_a_top_k_arm_that_dropped_nothing_is_named(tmp_path, dropped, why):
    rows = [row for row in table1() if (row["kind"], row["seed"]) != ("topk", 1)]
    if dropped is not None:
        rows.append(proof(25, "top-k", 1, dropped))
    found = text(write(tmp_path / "run", "table1", rows))
    assert "Top-k dropped nothing" in found
    assert f"- 25 modes, top-k GAN, seed 1: {why}" in found
    assert "seed 0" not in found


def test_table2_by_hand(tmp_path):
    folder = write(tmp_path / "run", "table2", table2())
    found = {table.title: table for table in tables(folder)}
    assert [*found] == [
        "average precision, score: energy",
        "area by trapezoids, score: energy",
        "average precision, score: input-gradient norm",
        "area by trapezoids, score: input-gradient norm",
        "average precision, score: cross-entropy",
        "area by trapezoids, score: cross-entropy",
        "top-k at work",
    ]
    precision, area = found["average precision, score: energy"], tables(folder)[1]
    assert precision.columns[1:3] == ["MEG", "top-k MEG"]
    assert precision.rows == [
        ["4", "0.405 ± 0.007", "0.455 ± 0.007", "+0.050 [+0.050, +0.050]", "2", "-", "-", "0.350"]
    ]
    assert area.rows[0][1] == "0.410 ± 0.014"
    assert area.rows[0][-3:] == ["0.401", "0.478", "0.350"]
    assert found["average precision, score: cross-entropy"].rows[0][1:3] == ["0.355 ± 0.007", "-"]


def test_of_other_data_the_papers_numbers_are_left_out(tmp_path):
    folder = write(tmp_path / "mnist", "table2", table2())
    assert "does not say which score its area is of" in text(folder)
    folder = write(tmp_path / "digits", "table2", table2(), settings={"dataset": "digits"})
    assert tables(folder)[1].rows[0][-3:] == ["-", "-", "0.350"]
    assert "numbers are left out, since they are of MNIST" in text(folder)


def test_each_row_may_say_how_long_its_training_is(tmp_path):
    rows = [row | {"iterations": 240} if row["arm"] == "bigan" else row for row in table2()]
    folder = write(tmp_path / "run", "table2", rows, settings={})
    assert "held-out digit 4, BiGAN, seed 1: unfinished: iteration 120 of 240" in text(folder)
    assert "Left out: 2 of 6" in text(folder)
    assert "120 to 240 iterations" in text(folder)


# --- what the movement says ---------------------------------------------------------------------


def said(values, update="bottom-k", quantity="cosine"):
    """The verdict on means of two seeds each, by bin."""
    rows = [
        {"update": update, "bin": number, "count": 9, quantity: mean}
        for number, means in enumerate(values)
        for mean in means
    ]
    [claim] = [c for c in claims.CLAIMS if (c.update, c.quantity) == (update, quantity)]
    return claims.verdict(claim, claims.movement(rows, quantity))


def test_table3_by_hand(tmp_path):
    folder = write(tmp_path / "run", "table3", table3())
    [found, counts] = tables3(folder)
    assert found.title == (
        "FID, 50,000 samples against 50,000 images of CIFAR-10, training part; lower is better"
    )
    assert found.rows == [
        ["32", "DCGAN", "38.50 ± 0.71", "36.50 ± 0.71", "-2.00 [-2.00, -2.00]", "2", "38.09",
         "35.62"],
        ["32", "SN-GAN", "21.50 ± 0.71", "-", "-", "2, 0; 0 paired", "21.36", "-"],
    ]  # fmt: skip
    assert counts.title == "top-k at work"


@pytest.mark.parametrize(
    "change",
    [{"score": "Frechet distance by x"}, {"data": "digits"}, {"fake": 10_000}, {"real": 10}],
)
def test_the_papers_fid_stands_beside_its_like_alone(tmp_path, change):
    folder = write(tmp_path / "run", "table3", table3(**change))
    [found, _] = tables3(folder)
    assert [row[-2:] for row in found.rows] == [["-", "-"]] * 2
    assert "The paper's numbers are left out" in text(folder)


@pytest.mark.parametrize("name", folders.ALIKE)
def test_scores_that_are_not_alike_are_in_tables_of_their_own(tmp_path, name):
    rows = table3()
    for row in rows:
        if row["kind"] == "score" and row["seed"]:
            row[name] = {"average": 0.999}.get(name, 7 if name in ("real", "fake") else "other")
    found = tables3(write(tmp_path / "run", "table3", rows))[:-1]
    assert [[row[5] for row in table.rows] for table in found] == [["1", "1, 0; 0 paired"]] * 2
    assert [table.rows[0][2] for table in found] == ["38.00", "39.00"]


def test_curves_of_table3_are_the_rows_and_sheets_stand_in_pairs(tmp_path):
    from PIL import Image

    folder = write(tmp_path / "run", "table3", table3())
    for shade, arm in enumerate(("dcgan", "top-k+dcgan", "sngan")):
        Image.new("L", (4, 4), 50 * shade).save(folder / "jobs/seed-0" / f"{arm}.png")
    curves, sheets = (block for block in blocks(folder) if isinstance(block, report.Drawing))
    lines = curves.figure.axes[0].get_lines()
    assert [[*line.get_ydata()] for line in lines] == [[43.5, 38.5], [41.5, 36.5]]
    assert [axes.get_title() for axes in curves.figure.axes] == [
        "DCGAN, 2 seeds",
        "SN-GAN, 2 seeds",
    ]
    assert [axes.get_title() for axes in sheets.figure.axes] == [
        "DCGAN", "SN-GAN", "top-k DCGAN", "",
    ]  # fmt: skip


def test_the_verdict_follows_the_signs():
    below, above, around = (-0.31, -0.29), (0.29, 0.31), (-0.5, 0.1)
    agreed = said([below] * 5)
    assert "negative in the bins 0–1, 1–2, 2–3, 3–4, > 4 std, as the paper says" in agreed
    assert "0–1: -0.30 [-0.43, -0.17]" in agreed
    assert "2 seeds" in agreed
    assert "includes 0" not in agreed

    mixed = said([below, around, below, above, above])
    assert "negative only in the bins 0–1, 1–2, 2–3 std, in part unlike the paper" in mixed
    assert "the 95% interval includes 0 in the bin 1–2 std" in mixed

    assert "not negative in the bins 0–1, 1–2, 2–3, 3–4, > 4 std, unlike" in said([above] * 5)
    assert "not negative in the bin 0–1 std, unlike the paper" in said([above])
    assert "unknown" in said([])
    assert "1 seed, no interval" in said([(-0.3,)] * 5)
    assert "positive in the bins" in said([above] * 5, quantity="change")
    far = said([below] * 4 + [above], update="top-k")
    assert "top-k: the mean cosine is positive in the bin > 4 std, as the paper says" in far
    assert "negative in the bin > 4 std, as" in said([above] * 4 + [below], "top-k", "change")


def test_the_probes_report(tmp_path):
    folder = write(tmp_path / "run", "probe", probe())
    found = [*blocks(folder)]
    cosine, change = (block for block in found if isinstance(block, report.Table))
    assert cosine.columns == [
        "distance (std)", "top-k", "bottom-k", "top-k - bottom-k", "seeds",
    ]  # fmt: skip
    half = 4.302653 * 0.05 / math.sqrt(3)
    assert cosine.rows[4] == [
        "> 4", f"+0.50 [{0.5 - half:+.2f}, {0.5 + half:+.2f}]",
        f"+0.10 [{0.1 - half:+.2f}, {0.1 + half:+.2f}]", "+0.40 [+0.40, +0.40]", "3",
    ]  # fmt: skip
    assert change.rows[0][2].startswith("+0.00040 [")
    found = "\n".join(block for block in found if isinstance(block, str))
    assert "bottom-k: the mean cosine is negative only in the bins 0–1, 1–2, 2–3, 3–4 std" in found
    assert "nearest mode: bottom-k 2 of 3, top-k 2 of 3" in found


def test_only_the_movement_at_the_end_counts(tmp_path):
    early = [row | {"iteration": 50, "cosine": 1.0} for row in probe() if row["seed"] == 0]
    early = [row for row in early if row["kind"] == "movement"]
    before = write(tmp_path / "before", "probe", probe())
    after = write(tmp_path / "after", "probe", early + probe())
    assert tables(before) == tables(after) != []


# --- figures ------------------------------------------------------------------------------------


def test_after_a_smoke_run_nothing_is_said_of_the_paper(tmp_path):
    found = [*blocks(write(tmp_path / "run", "probe", probe(), preset="smoke"))]
    assert not [block for block in found if isinstance(block, str) and "the paper says" in block]
    assert len([block for block in found if isinstance(block, report.Table)]) == 2


def test_the_contrast_is_taken_seed_by_seed():
    rows = [
        {"cell": 25, "seed": seed, "update": update, "bin": 0, "count": count, "cosine": cosine}
        for seed, update, count, cosine in [
            (0, "top-k", 3, 0.5), (0, "bottom-k", 2, 0.1), (1, "top-k", 1, 0.1),
            (1, "bottom-k", 1, -0.1), (2, "top-k", 5, 0.9), (2, "bottom-k", 0, None),
        ]
    ]  # fmt: skip
    found = claims.contrast(rows, "cosine")
    assert [*found] == [0]
    assert found[0].n == 2
    assert found[0].mean == pytest.approx(0.3)


def test_learning_curves_are_the_rows(tmp_path):
    figure = drawing(write(tmp_path / "run", "table1", table1()), "table1")
    quality, modes = figure.axes
    for line, ends in zip(quality.lines, (GAN, TOPK), strict=True):
        assert list(line.get_xdata()) == [50, 100]
        assert line.get_ydata() == pytest.approx([plain.mean(ends) / 2, plain.mean(ends)])
    for band, ends in zip(quality.collections, (GAN, TOPK), strict=True):
        edges = band.get_paths()[0].vertices[:, 1]
        assert (edges.min(), edges.max()) == pytest.approx(
            (plain.mean(ends) / 2 - plain.stdev(ends) / 2, plain.mean(ends) + plain.stdev(ends))
        )
    assert quality.get_ylabel() == "high-quality samples (%)"
    assert quality.get_title() == "25 modes"
    assert list(modes.lines[0].get_ydata()) == [100, 100]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "GAN, 3 seeds", "top-k GAN, 3 seeds"
    ]  # fmt: skip


def test_samples_are_the_rows(tmp_path):
    figure = drawing(write(tmp_path / "run", "table1", table1()), "samples")
    gan, topk = figure.axes
    assert (gan.get_title(), topk.get_title()) == ("GAN, 25 modes", "top-k GAN, 25 modes")
    for panel in (gan, topk):
        [points] = panel.lines
        assert points.get_xydata().tolist() == [[0.1, -0.2], [1.0, 1.0], [7.0, 0.0]]
        circles = {(*patch.center, patch.radius) for patch in panel.patches}
        assert circles == {(x, y, 0.2) for x in range(-2, 3) for y in range(-2, 3)}
        assert [note.get_text() for note in panel.texts] == ["1 outside"]


def test_bars_are_the_rows(tmp_path):
    folder = write(tmp_path / "run", "probe", probe())
    for name, factor in (("figure2", 1.0), ("figure3", -1e-3)):
        panels = drawing(folder, name).axes
        for panel, update in zip(panels, ("top-k", "bottom-k"), strict=True):
            assert panel.get_title() == f"{update} update, 3 seeds"
            heights = [bar.get_height() for bar in panel.patches]
            assert heights == pytest.approx([factor * cosine for cosine in COSINES[update]])
            for bar, whisker in zip(heights, panel.collections[0].get_segments(), strict=True):
                spread = 0.05 * abs(factor)
                assert whisker[:, 1].tolist() == pytest.approx([bar - spread, bar + spread])
            ticks = [tick.get_text() for tick in panel.get_xticklabels()]
            assert ticks == ["0–1", "1–2", "2–3", "3–4", "> 4"]


def test_a_bin_of_fewer_seeds_says_so_and_one_without_is_empty():
    one = statistics.Summary(1, 0.5, None, None)
    found = {("top-k", 0): statistics.summary([0.1, 0.3]), ("top-k", 1): one}
    figure = mixture_figures.movement_figure(found, "mean cosine", ["top-k", "bottom-k"])
    top, bottom = figure.axes
    notes = [note.get_text() for note in top.texts]
    assert notes == ["1 seed", "0 seeds", "0 seeds", "0 seeds"]
    assert len(top.patches) == 2
    assert len(top.collections[0].get_segments()) == 1
    assert not bottom.patches


def test_arrows_are_the_rows_times_the_stated_factor(tmp_path):
    figure = drawing(write(tmp_path / "run", "probe", probe()), "figure4")
    for panel, update in zip(figure.axes, ("bottom-k", "top-k"), strict=True):
        title = panel.get_title()
        assert title.startswith(f"{update} update, arrows × ")
        factor = float(title.rpartition(" ")[2])
        toward, away = panel.collections
        drawn = [
            [x, y, dx / factor, dy / factor]
            for group in (toward, away)
            for x, y, dx, dy in zip(group.X, group.Y, group.U, group.V, strict=True)
        ]
        assert drawn == [pytest.approx(arrow) for arrow in ARROWS]
        assert len(toward.X) == 1
        longest = factor * max(math.hypot(dx, dy) for _, _, dx, dy in ARROWS)
        assert 0.2 < longest < 1.2  # seen, and no longer than to the next mode or so
        labels = [entry.get_text() for entry in panel.get_legend().get_texts()]
        assert labels == ["toward the nearest mode: 1 of 3", "away from it: 2 of 3"]


def test_points_are_the_rows(tmp_path):
    figure = drawing(write(tmp_path / "run", "table2", table2()), "table2")
    energy, _, bigan, spare = figure.axes
    assert not spare.get_visible()
    assert energy.get_ylabel() == "average precision\nenergy"
    assert energy.get_xlabel() == "held-out digit"
    assert [tick.get_text() for tick in energy.get_xticklabels()] == ["4"]
    found = {bars.get_label(): bars for bars in energy.containers}
    assert [*found] == ["MEG, 2 seeds", "top-k MEG, 2 seeds"]
    for bars, mean in zip(found.values(), (0.405, 0.455), strict=True):
        assert bars.lines[0].get_ydata() == pytest.approx([mean])
        [whisker] = bars.lines[2][0].get_segments()
        spread = plain.stdev([0.0, 0.01])
        assert whisker[:, 1].tolist() == pytest.approx([mean - spread, mean + spread])
    assert [bars.get_label() for bars in bigan.containers] == ["BiGAN, 2 seeds"]
    chance = next(lines for lines in energy.collections if lines.get_label() == "chance")
    assert chance.get_segments()[0][:, 1].tolist() == [0.35, 0.35]


def test_curves_of_table2_only_where_there_is_more_than_the_end(tmp_path):
    folder = write(tmp_path / "all", "table2", table2())
    line = drawing(folder, "table2-curves").axes[0].lines[0]
    assert list(line.get_xdata()) == [60, 120]
    assert line.get_ydata() == pytest.approx([0.405 / 2, 0.405])
    ends = [row for row in table2() if row["iteration"] == 120]
    names = [b.name for b in blocks(write(tmp_path / "ends", "table2", ends))
             if isinstance(b, report.Drawing)]  # fmt: skip
    assert names == ["table2"]


# --- the command --------------------------------------------------------------------------------

FILES = {
    "table1": ["samples", "table1"],
    "probe": ["figure2", "figure3", "figure4"],
    "table2": ["table2", "table2-curves"],
}


def test_report_writes_and_prints_each_folder_by_itself(tmp_path, capsys):
    from matplotlib.image import imread

    rows = {"table1": table1(), "probe": probe(), "table2": table2()}
    folders = [write(tmp_path / name, name, rows[name], preset="smoke") for name in rows]
    assert report.report(folders) == 0
    printed = capsys.readouterr().out
    for folder in folders:
        pictures = FILES[folder.name]
        assert sorted(path.stem for path in folder.glob("*.png")) == pictures
        assert sorted(path.stem for path in folder.glob("*.pdf")) == pictures
        for name in pictures:
            pixels = imread(folder / f"{name}.png")
            assert pixels.shape[1] >= 400
            assert pixels[..., :3].std() > 0.03  # not a blank page
            assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        written = (folder / "report.md").read_text()
        for name in pictures:
            assert f"]({name}.png)" in written
            assert str(folder / name) in printed.replace("\n", "")
        assert written.startswith("# The experiment\n")
        assert "smoke: shows that it runs, says nothing about the method" in written
        assert f"topk reproduce {folder.name} --preset short" in written
    written = (tmp_path / "table1" / "report.md").read_text()
    line = "25 | 80.0 ± 1.0 | 83.0 ± 1.0 | +3.0 [+0.5, +5.5] | 3 | 85.6 | 95.5"
    assert f"| {line} |" in written
    assert " ".join(line.replace("|", "").split()) in " ".join(printed.split())
    assert "on cpu" in written
    assert "torch 2.14.1" in written
    assert "spacing 1.0" in written


def test_the_same_rows_give_the_same_files(tmp_path):
    rows = [row for row in probe() if row["kind"] == "movement"]
    first = write(tmp_path / "a" / "run", "probe", rows)
    second = write(tmp_path / "b" / "run", "probe", rows)
    report.report([first, second])
    files = [path for path in first.iterdir() if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_the_data_are_named(tmp_path):
    data = {"name": "mnist", "count": 10_000, "sha256": "ab12"}
    folder = write(tmp_path / "run", "table2", table2(), data=data)
    assert "- data: name mnist, count 10000, sha256 ab12" in text(folder)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(ConfigError, match="no such folder.*expected a run's folder with run.json"):
        report.report([tmp_path / "none"])
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match="found nothing"):
        report.report([tmp_path / "photos"])
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(ConfigError, match=r"found cat\.png, expected"):
        report.report([tmp_path / "photos"])


@pytest.mark.parametrize("text", ['{"experiment": "tab', "[]", '{"experiment": "table1"}'])
def test_a_damaged_run_json(tmp_path, text):
    folder = write(tmp_path / "run", "table1", table1())
    (folder / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json: damaged: .*; restore it, or run"):
        report.report([folder])


def test_a_wrong_type_in_run_json(tmp_path):
    folder = write(tmp_path / "run", "table1", table1(), seeds="three")
    with pytest.raises(ConfigError, match=r"run\.json: damaged: seeds is 'three'"):
        report.report([folder])


def test_an_unknown_experiment_or_preset(tmp_path):
    folder = write(tmp_path / "a", "tabel1", table1())
    with pytest.raises(ConfigError, match="'tabel1', expected .*; did you mean 'table1'"):
        report.report([folder])
    folder = write(tmp_path / "b", "table1", table1(), preset="Paper")
    with pytest.raises(ConfigError, match="preset: found 'Paper'.*did you mean 'paper'"):
        report.report([folder])


def test_a_run_without_rows(tmp_path):
    folder = write(tmp_path / "run", "table1", [], cells=[25], arms=["gan"], seeds=1)
    with pytest.raises(ConfigError, match="0 files .*topk reproduce table1 --preset short"):
        report.report([folder])
    (folder / "jobs" / "a").mkdir(parents=True)
    (folder / "jobs" / "a" / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="1 files .* with no row"):
        report.report([folder])


GOOD = score(25, "gan", 0, 80.0)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"cell": 25, "arm"', "Expecting"),
        (b"\0" * 40, ""),
        (b'{"cell": "\xff"}', "codec"),
        (b"[1, 2]", "it is no object"),
        (json.dumps({"cell": 25, "arm": "gan"}).encode(), "seed, iteration, kind missing"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "modes"}).encode(), "modes missing"),
        (json.dumps(GOOD | {"cell": 36}).encode(), r"\(36, 'gan', 0\) is not in run.json"),
        (json.dumps(GOOD | {"seed": 3}).encode(), r"\(25, 'gan', 3\) is not in run.json"),
        (json.dumps(GOOD | {"iteration": "100"}).encode(), "iteration is '100'"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_written(tmp_path, line, why):
    sound = write(tmp_path / "sound", "table1", table1())
    folder = write(tmp_path / "run", "table1", table1())
    file = folder / "jobs" / "seed-0" / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl, line 3: damaged: .*{why}"):
        report.report([sound, folder])
    assert not (sound / "report.md").exists()


def test_settings_that_the_figures_need(tmp_path):
    folder = write(tmp_path / "run", "table1", table1(), settings={"iterations": 100})
    with pytest.raises(ConfigError, match=r"run\.json: damaged: settings\.spacing is None"):
        report.report([folder])
    folder = write(tmp_path / "none", "table1", table1(), settings={})
    with pytest.raises(ConfigError, match="line 1: damaged: neither it nor run.json's settings"):
        report.report([folder])


def test_a_report_that_cannot_be_written(tmp_path):
    folder = write(tmp_path / "run", "table1", table1())
    (folder / "table1.pdf").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        report.report([folder])


@pytest.mark.parametrize("module", ["matplotlib", "scipy", "sklearn"])
def test_what_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, module):
    folder = write(tmp_path / "run", "table1", table1())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TopKError, match=rf"{module}.*pip install 'topk_plugin\[reference\]'"):
        report.report([folder])


def test_the_study_puts_the_variant_nearest_to_the_papers_baseline_first():
    paper = {
        ("high_quality", 25, "gan"): 80.0, ("modes", 25, "gan"): 100.0,
        ("high_quality", 64, "gan"): 60.0, ("modes", 64, "gan"): 90.0,
    }  # fmt: skip
    measured = {
        ("far", 25): (60.0, 100.0), ("far", 64): (60.0, 90.0),
        ("near", 25): (82.0, 98.0), ("near", 64): (60.0, 90.0),
        ("not ended", 25): (80.0, 100.0),
    }  # fmt: skip
    rows = [
        {"arm": arm, "cell": cell, "seed": seed, "high_quality": quality + step, "modes": modes}
        for (arm, cell), (quality, modes) in measured.items()
        for seed, step in enumerate((-1.0, 1.0))
    ]
    table = mixtures.study_table(rows, [25, 64], paper)
    assert [line[:2] for line in table.rows] == [["paper", ""], ["near", "1.0"], ["far", "5.0"]]
    assert table.rows[1][2:] == ["82.0", "98.0", "60.0", "90.0"]


def test_the_paper_s_numbers_and_the_study_s_variants():
    assert list(EXPERIMENTS["study"].arms) == list(VARIANTS)
    table1, table2 = EXPERIMENTS["table1"].paper, EXPERIMENTS["table2"].paper
    assert len(table1) == 12
    assert table1["high_quality", 64, "top-k"] == 81.8
    assert table1["modes", 100, "gan"] == 94.6
    assert len(table2) == 15
    assert table2["trapezoid", 5, "top-k+meg"] == 0.561
    assert table2["trapezoid", 7, "bigan"] == 0.347


def test_a_sign_that_the_interval_leaves_open_decides_nothing():
    claim = claims.Claim("top-k", "cosine", 1, (4,))
    open_, known = (
        statistics.Summary(3, 0.1, 0.1, interval) for interval in ((-0.1, 0.3), (0.05, 0.15))
    )
    assert "which decides nothing" in claims.verdict(claim, {("top-k", 4): open_})
    assert "as the paper says (" in claims.verdict(claim, {("top-k", 4): known})
    both = claim._replace(bins=(3, 4))
    said = claims.verdict(both, {("top-k", 3): open_, ("top-k", 4): known})
    assert "as the paper says as far as it is decided" in said


# --- Tables 4 and 5, and the later version ------------------------------------------------------

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


def report5(folder, rows, **changes):
    """The table of distances, that of top-k's counts, and the sentences."""
    write(folder, "table5", rows, **{"settings": SETTINGS} | changes)
    [found, *counts] = tables3(folder)
    return found, counts, "\n".join(b for b in blocks(folder) if isinstance(b, str))


def test_table5_by_hand(tmp_path):
    found, _, said = report5(tmp_path / "run", table5())
    assert found.columns == [
        "arm", "FID", "from the baseline [95%]", "from the proposed [95%]", "seeds", "paper",
    ]  # fmt: skip
    by_label = {row[0]: row[1:] for row in found.rows}
    assert [*by_label] == [
        "baseline (no top-k)", "gamma 0.99, nu 0.5 (proposed)", "gamma 0.5", "nu 0.9",
        "top-k on the critic (D)", "top-k on both (G & D)",
    ]  # fmt: skip
    # the half of an interval of three seeds is 4.302653 / sqrt(3) = 2.48414 standard deviations
    assert by_label["baseline (no top-k)"] == [
        "20.00 ± 1.00", "-", "+1.50 [+0.26, +2.74]", "3", "19.02",
    ]  # fmt: skip
    assert by_label["gamma 0.99, nu 0.5 (proposed)"] == [
        "18.50 ± 0.50", "-1.50 [-2.74, -0.26]", "-", "3", "17.93",
    ]  # fmt: skip
    assert by_label["top-k on the critic (D)"] == [
        "28.00 ± 1.00", "+8.00 [+5.52, +10.48]", "+9.50 [+7.35, +11.65]", "3", "27.44",
    ]  # fmt: skip
    assert by_label["top-k on both (G & D)"][3:] == ["3", "-"]
    proposed = "gamma 0.99, nu 0.5 (proposed)"
    for sentence in (
        f"in the paper top-k on the critic (D) is worse than {proposed}: this run agrees "
        "(+9.50 [+7.35, +11.65], 3 seeds).",
        f"in the paper top-k on both (G & D) is worse than {proposed}: this run agrees (+10.33 [",
        f"in the paper gamma 0.5 is worse than {proposed}: this run disagrees (-1.00 [",
        f"in the paper nu 0.9 is worse than {proposed}: not decided here, since the 95% interval "
        "includes 0 (+0.17 [-1.27, +1.60], 3 seeds).",
        f"in the paper {proposed} is better than baseline (no top-k): this run agrees (-1.50 [",
    ):
        assert f"- {sentence}" in said
    assert "The paper's numbers have no seeds" in said


def test_table5_pairs_the_seeds_that_both_arms_have(tmp_path):
    rows = [r for r in table5() if (r["arm"], r["seed"], r["iteration"]) != ("sagan", 1, 100)]
    found, _, said = report5(tmp_path / "run", rows)
    assert "pixels 32, baseline (no top-k), seed 1: unfinished" in said
    baseline, proposed, *_, critic, _ = found.rows
    assert baseline[1:5] == ["20.00 ± 1.41", "-", "+1.50 [-4.85, +7.85]", "2"]
    assert proposed[4] == "3; 2 paired"
    # 9 and 8; t of one degree of freedom: 12.7062 x 0.70711 / sqrt(2) = 6.3531
    assert critic[2] == "+8.50 [+2.15, +14.85]"
    assert critic[3:5] == ["+9.50 [+7.35, +11.65]", "3; 2 and 3 paired"]


@pytest.mark.parametrize(
    ("arms", "columns", "claims", "panels"),
    [
        (["critic"], [["-", "-"]], 0, [["critic"]]),
        (["top-k+sagan"], [["-", "-"]], 0, []),
        (["sagan"], [["-", "-"]], 0, []),
        (
            ["top-k+sagan", "critic"],
            [["-", "-"], ["-", "+9.50 [+7.35, +11.65]"]], 1, [["generator", "critic"]],
        ),
        (
            ["sagan", "nu=0.9"],
            [["-", "-"], ["-1.33 [-3.23, +0.56]", "-"]], 0, [["0.9"]],
        ),
    ],
)  # fmt: skip
def test_table5_of_some_arms(tmp_path, arms, columns, claims, panels):
    found, _, said = report5(tmp_path / "run", table5({arm: ABLATION[arm] for arm in arms}))
    assert [row[2:4] for row in found.rows] == columns
    assert all(row[4] == "3" for row in found.rows)
    assert said.count("- in the paper") == claims
    drawn = [b for b in blocks(tmp_path / "run") if isinstance(b, report.Drawing)]
    assert [block.name for block in drawn] == ["table5", "table5-curves"][: 2 * len(panels)]
    if drawn:
        axes = drawn[0].figure.axes
        assert [[t.get_text() for t in panel.get_xticklabels()] for panel in axes] == panels


def test_after_a_smoke_run_or_one_seed_table5_decides_nothing(tmp_path):
    found, _, said = report5(tmp_path / "smoke", table5(), preset="smoke")
    assert "in the paper" not in said
    assert found.rows[1][2] == "-1.50 [-2.74, -0.26]"
    one = {arm: ends[:1] for arm, ends in ABLATION.items()}
    found, _, said = report5(tmp_path / "one", table5(one))
    assert found.rows[4][1:5] == ["28.00", "+9.00", "+10.00", "1"]
    assert said.count("not decided here, since one seed has no interval") == 5
    assert "agrees" not in said
    rows = [row for row in table5() if row["arm"] != "sagan" or row["iteration"] < 100]
    _, _, said = report5(tmp_path / "none", rows)
    assert "better than baseline (no top-k): not decided here, since no seed has" in said


def test_table5_at_another_gamma_is_not_the_paper_s(tmp_path):
    found, _, said = report5(tmp_path / "run", table5(), settings=SETTINGS | {"gamma": 0.5})
    assert found.rows[1][0] == "gamma 0.5, nu 0.5 (reference)"
    assert found.columns[3] == "from the reference [95%]"
    assert {row[-1] for row in found.rows} == {"-"}
    assert "numbers are left out: they are of gamma 0.99 and nu 0.5" in said
    assert "- in the paper" not in said  # which says nothing of it


def test_numbers_of_another_gamma_stand_beside_none_of_the_papers(tmp_path):
    arms = dict.fromkeys(EXPERIMENTS["table4"].arms, (20.0,))
    folder = write(tmp_path / "run", "table4", table5(arms, 128, **IMAGENET))  # gamma 0.99
    assert [row[-2:] for row in tables(folder)[0].rows] == [["-", "-"]]
    said = "\n".join(b for b in blocks(folder) if isinstance(b, str))
    assert "numbers are left out: they are of gamma 0.98 and nu 0.5." in said


def test_arms_that_diverge_are_in_the_verdicts(tmp_path):
    rows = table5({arm: ABLATION[arm] for arm in ("sagan", "top-k+sagan", "critic", "both")})
    for row in rows:
        if row["kind"] == "score" and (row["arm"], row["seed"]) in (
            ("critic", 0), ("critic", 1), ("critic", 2), ("both", 1),
        ):  # fmt: skip
            row["fid"] = None
    _, _, said = report5(tmp_path / "run", rows)
    assert (
        "top-k on the critic (D) is worse than gamma 0.99, nu 0.5 (proposed): not decided here, "
        "since no seed has a distance of both. 3 seeds of top-k on the critic (D) diverged (not "
        "finite) and are not in it."
    ) in said
    assert "2 seeds). 1 seed of top-k on both (G & D) diverged (not finite) and is not" in said


def test_table5_has_the_papers_numbers():
    paper = {arm: number for (_, _, arm), number in EXPERIMENTS["table5"].paper.items()}
    assert paper == {
        "sagan": 19.02, "gamma=0.999": 18.68, "top-k+sagan": 17.93, "gamma=0.9": 18.14,
        "gamma=0.75": 21.60, "gamma=0.5": 25.30, "nu=0.9": 18.47, "nu=0.75": 18.08,
        "critic": 27.44, "both": 27.57,
    }  # fmt: skip


def test_unlike_distances_are_neither_in_one_table_nor_paired(tmp_path):
    rows = table5({arm: ABLATION[arm] for arm in ("sagan", "critic")})
    for row in rows:
        if row["kind"] == "score" and (row["arm"], row["seed"]) in (("critic", 1), ("critic", 2)):
            row["features_digest"] = "other"
    write(tmp_path / "run", "table5", rows, settings=SETTINGS)
    one, other, _ = tables3(tmp_path / "run")
    assert [row[1:5] for row in one.rows] == [
        ["20.00 ± 1.00", "-", "-", "3"], ["28.00", "+9.00", "-", "1"],
    ]  # fmt: skip
    assert [row[1:5] for row in other.rows] == [
        ["-", "-", "-", "0"], ["28.00 ± 1.41", "-", "-", "2"],
    ]  # fmt: skip
    names = [b.name for b in blocks(tmp_path / "run") if isinstance(b, report.Drawing)]
    assert names == ["table5", "table5-curves", "table5-2", "table5-curves-2"]


IMAGENET = {"data": "train, 1,281,167 images of 1,000 classes at 128x128", "real": 1_281_167}


@pytest.mark.parametrize(
    ("experiment", "change", "beside"),
    [
        ("table4", {}, True),
        ("table4", {"data": IMAGENET["data"].replace("train", "ILSVRC, 2012")}, True),
        ("table4", {"data": IMAGENET["data"].replace("1,000", "999")}, False),
        ("table4", {"data": IMAGENET["data"].replace("128x128", "64x64")}, False),
        ("table4", {"real": 50_000}, False),
        ("table4", {"fake": 5_000}, False),
        ("table4", {"score": "Frechet distance by x"}, False),
        ("table5", {}, True),
        ("table5", {"data": "Fashion-MNIST, training part"}, False),
        ("table5", {"fake": 10_000}, False),
        ("neurips", {}, True),
        ("neurips", {"real": 10_000}, False),
    ],
)
def test_the_paper_s_numbers_stand_beside_their_like_alone(tmp_path, experiment, change, beside):
    cell = EXPERIMENTS[experiment].cells[0]
    arms = dict.fromkeys(EXPERIMENTS[experiment].arms, (20.0,))
    rows = table5(arms, cell, **(IMAGENET if experiment == "table4" else {}) | change)
    settings = SETTINGS | ({"gamma": 0.98} if experiment == "table4" else {})
    folder = write(tmp_path / "run", experiment, rows, settings=settings)
    found = tables(folder)[0]
    paper = {
        "table4": [["19.98", "18.44"]],
        "table5": [["19.02"], ["17.93"], *[["-"]] * 6, ["27.44"], ["-"]],
        "neurips": [["-", "-"], ["9.21", "8.57"]],
    }[experiment]
    shown = [row[-len(paper[0]) :] for row in found.rows]
    assert shown == (paper if beside else [["-"] * len(line) for line in paper])
    said = "\n".join(b for b in blocks(folder) if isinstance(b, str))
    images = "ImageNet's 1,281,167 training" if experiment == "table4" else "the 50,000 training"
    why = f"left out: they are FID by Inception of 50,000 samples against {images} images of"
    assert (why in said) != beside


def test_top_k_at_work_in_each_loss(tmp_path):
    rows = table5()
    _, [counts], said = report5(tmp_path / "run", rows)
    assert counts.columns[1:4] == ["arm", "of", "steps"]
    assert [row[1:5] for row in counts.rows] == [
        ["gamma 0.99, nu 0.5 (proposed)", "generator", "100", "640"],
        ["gamma 0.5", "generator", "100", "640"],
        ["nu 0.9", "generator", "100", "640"],
        ["top-k on the critic (D)", "critic", "500", "640"],
        ["top-k on both (G & D)", "critic", "500", "640"],
        ["top-k on both (G & D)", "generator", "100", "640"],
    ]
    assert "Top-k dropped nothing" not in said
    for row in rows:
        if row["kind"] == "topk" and (row["arm"], row["of"], row["seed"]) == ("both", "critic", 1):
            row["dropped"] = 0
    rows = [r for r in rows if (r["arm"], r["kind"], r["seed"]) != ("gamma=0.5", "topk", 2)]
    _, _, said = report5(tmp_path / "idle", rows)
    assert said.endswith(
        "Top-k dropped nothing in these losses, which are as a baseline's:\n"
        "- pixels 32, top-k on both (G & D), seed 1, critic: 0 rows\n"
        "- pixels 32, gamma 0.5, seed 2, generator: no record of top-k"
    )


def test_the_figure_of_table5_is_the_rows(tmp_path):
    folder = write(tmp_path / "run", "table5", table5(), settings=SETTINGS)
    figure = drawing(folder, "table5")
    ticks = [[t.get_text() for t in panel.get_xticklabels()] for panel in figure.axes]
    assert ticks == [["0.5", "0.99"], ["0.5", "0.9"], ["generator", "critic", "both"]]
    means = [[17.5, 18.5], [18.5, 56 / 3], [18.5, 28.0, 86.5 / 3]]
    for panel, expected in zip(figure.axes, means, strict=True):
        assert panel.get_yscale() == "linear"
        points = [bars.lines[0].get_xydata().tolist() for bars in panel.containers]
        assert points == [[[place, pytest.approx(m)]] for place, m in enumerate(expected)]
        [line] = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert [*line.get_ydata()] == [20.0, 20.0]
        [band] = panel.patches
        assert (band.get_y(), band.get_height()) == pytest.approx((19.0, 2.0))
    critic = figure.axes[2].containers[1]
    assert critic.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([27.0, 29.0])
    seeds = [[*line.get_ydata()] for line in figure.axes[2].lines if line.get_marker() == "."]
    assert seeds == [[18.0, 18.5, 19.0], [28.0, 27.0, 29.0], [28.5, 28.0, 30.0]]
    assert figure.axes[0].get_ylabel() == "FID\n(lower is better)"
    assert figure.axes[0].get_xlabel().startswith("gamma")

    wide = table5(ABLATION | {"both": (150.0, 140.0, 160.0)})
    figure = drawing(write(tmp_path / "wide", "table5", wide, settings=SETTINGS), "table5")
    assert {panel.get_yscale() for panel in figure.axes} == {"log"}


def test_curves_of_table5_have_the_baseline_in_each_panel(tmp_path):
    folder = write(tmp_path / "run", "table5", table5(), settings=SETTINGS)
    figure = drawing(folder, "table5-curves")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["gamma, 3 seeds", "nu, 3 seeds", "whose loss, 3 seeds"]
    ends = [
        {line.get_label(): line.get_ydata()[-1] for line in panel.lines} for panel in figure.axes
    ]
    shared = {"baseline": 20.0, "proposed": 18.5}
    assert ends[0] == shared | {"gamma 0.5": 17.5}
    assert ends[2] == shared | {
        "top-k on the critic (D)": 28.0, "top-k on both (G & D)": pytest.approx(86.5 / 3)
    }  # fmt: skip


def test_sheets_of_many_arms_stand_in_rows_of_five(tmp_path):
    from PIL import Image

    sheets = {arm: tmp_path / f"{number}.png" for number, arm in enumerate(ABLATED)}
    for path in sheets.values():
        Image.new("L", (4, 4)).save(path)
    axes = figures.sheets_figure(sheets, {"sagan": "baseline"}).axes
    assert [axes[n].get_title() for n in (0, 1, 2, 9)] == [
        "baseline", "top-k+sagan", "gamma=0.999", "both",
    ]  # fmt: skip
    assert len({panel.get_subplotspec().rowspan.start for panel in axes}) == 2


def test_one_baseline_of_several_arms_is_not_paired_away():
    values = {Member(32, arm, 0): ends[0] for arm, ends in ABLATION.items()}
    rows = statistics.compare(values, [32], list(ABLATION), "fid", PAPER)
    assert {row.baseline_arm for row in rows} == {"sagan"}
    assert [row.topk_arm for row in rows] == list(ABLATION)[1:]
    assert [row.difference.mean for row in rows] == [-1.0, -2.0, -0.5, 9.0, 9.5]
    members = [Member(32, arm, 0) for arm in ("both", "dcgan", "nu=0.9", "sagan", "top-k+dcgan")]
    assert arms.in_pairs(members) == ["sagan", "both", "nu=0.9", "dcgan", "top-k+dcgan"]


def test_all_that_can_be_reproduced_can_be_reported():
    assert {*page.SECTIONS} == {*folders.KINDS} == {e.trainer for e in EXPERIMENTS.values()}
    assert {*RESULTS.values()} == {*EXPERIMENTS}
    assert {arm for e in EXPERIMENTS.values() if e.trainer == "images" for arm in e.arms} <= {
        *arms.ARMS
    }
    assert arms.ARMS["top-k+sagan-128"] == f"top-k {MODELS['sagan-128'].title}"
