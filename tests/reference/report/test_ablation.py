"""The report of Table 5."""

import pytest
from report_folders import (
    ABLATION,
    SETTINGS,
    blocks,
    drawing,
    table5,
    tables3,
    write,
)

from topk_plugin.reference import report
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.models import ABLATED
from topk_plugin.reference.report import figures


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
