"""The reports of Table 1, of its study, and of the probe."""

import math
import statistics as plain

import pytest
from report_folders import (
    ARROWS,
    COSINES,
    GAN,
    TOPK,
    blocks,
    drawing,
    probe,
    proof,
    score,
    table1,
    tables,
    text,
    write,
)

from topk_plugin.reference import report, statistics
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.report import mixture_figures, mixtures
from topk_plugin.reference.study import VARIANTS


def test_table1_by_hand(tmp_path):
    quality, modes, work = tables(write(tmp_path / "run", "table1", table1()))
    assert quality.title == "high-quality samples (%)"
    assert quality.columns[:3] == ["modes", "GAN", "top-k GAN"]
    assert quality.columns[5:] == ["paper: GAN", "paper: top-k GAN"]
    line = ["25", "80.0 ± 1.0", "83.0 ± 1.0", "+3.0 [+0.5, +5.5]", "3", "85.6", "95.5"]
    assert quality.rows == [line]
    assert modes.rows == [["25", "100.0 ± 0.0", "100.0 ± 0.0", "+0.0 [+0.0, +0.0]", "3", "-", "-"]]
    assert work.rows == [["25", "top-k GAN", "100", "640", "high", "192", "5"]]


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
    assert [*EXPERIMENTS["study"].arms[::2]] == [*VARIANTS]
    assert [*EXPERIMENTS["study"].arms[1::2]] == [f"top-k+{name}" for name in VARIANTS]
    table1, table2 = EXPERIMENTS["table1"].paper, EXPERIMENTS["table2"].paper
    assert len(table1) == 12
    assert table1["high_quality", 64, "top-k"] == 81.8
    assert table1["modes", 100, "gan"] == 94.6
    assert len(table2) == 15
    assert table2["trapezoid", 5, "top-k+meg"] == 0.561
    assert table2["trapezoid", 7, "bigan"] == 0.347


def scheduled():
    """Rows of three arms and seeds; the restored arm leads, the paper's schedule falls behind."""
    rows = []
    for seed in range(3):
        for arm, end in (
            ("gan", GAN[seed]),
            ("top-k", GAN[seed] - 5),
            ("restore-10-20", TOPK[seed]),
        ):
            rows += [score(25, arm, seed, end / 2, iteration=50), score(25, arm, seed, end)]
            if arm != "gan":
                rows.append(proof(25, arm, seed))
    return rows


def test_schedules_by_hand(tmp_path):
    folder = write(tmp_path / "run", "schedules", scheduled())
    quality, modes, lead, _, work = tables(folder)
    assert quality.rows == [
        ["GAN", "80.0 ± 1.0", "-", "-", "-", "85.6"],
        ["top-k GAN", "75.0 ± 1.0", "-5.0 [-5.0, -5.0]", "-", "0 of 3", "95.5"],
        ["gamma 0.95, restored 10:20", "83.0 ± 1.0", "+3.0 [+0.5, +5.5]", "+8.0 [+5.5, +10.5]",
         "3 of 3", "-"],
    ]  # fmt: skip
    assert [line[3] for line in modes.rows] == ["-", "-", "+0.0 [+0.0, +0.0]"]
    assert lead.columns == ["arm", "50", "100"]
    assert lead.rows[0] == ["GAN", "40.0 ± 0.5", "80.0 ± 1.0"]
    assert lead.rows[2] == ["gamma 0.95, restored 10:20", "+1.5 [+0.3, +2.7]", "+3.0 [+0.5, +5.5]"]
    assert [line[1] for line in work.rows] == ["top-k GAN", "gamma 0.95, restored 10:20"]
    found = text(folder)
    assert "- top-k GAN: it ends behind the GAN in high-quality samples (-5.0 [-5.0, -5.0]" in found
    assert "- gamma 0.95, restored 10:20: it ends ahead of the GAN in" in found


def test_a_schedule_whose_interval_holds_zero_is_left_open(tmp_path):
    rows = [row for row in scheduled() if row["seed"] < 2]
    found = text(write(tmp_path / "run", "schedules", rows))
    assert (
        "restored 10:20: whether it ends ahead of the GAN in high-quality samples is open" in found
    )


def test_a_table_over_training_has_few_columns_and_the_last_iteration(tmp_path):
    rows = [score(25, arm, 0, 1.0, iteration=i, iterations=37) for arm in ("gan", "restore-5-15")
            for i in range(1, 38)]  # fmt: skip
    lead = tables(write(tmp_path / "run", "schedules", rows))[2]
    assert lead.columns == ["arm", *(str(i) for i in range(1, 38, 4))]


def test_the_study_compares_its_variants_without_and_with_top_k(tmp_path):
    rows = []
    for seed in range(3):
        for arm, values in (("tanh", GAN), ("top-k+tanh", TOPK), ("ReLU", TOPK)):
            rows.append(score(25, arm, seed, values[seed]))
        rows.append(proof(25, "top-k+tanh", seed))
    run = report.read_run(write(tmp_path / "run", "study", rows))
    found = [*mixtures.study(run, EXPERIMENTS["study"].paper)]
    variants, quality, _, _ = (block for block in found if isinstance(block, report.Table))
    assert [line[0] for line in variants.rows] == ["paper", "ReLU", "tanh"]
    assert quality.columns[1:3] == ["tanh", "top-k+tanh"]
    assert quality.rows[0][:4] == ["25", "80.0 ± 1.0", "83.0 ± 1.0", "+3.0 [+0.5, +5.5]"]
