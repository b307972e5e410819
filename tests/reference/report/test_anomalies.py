"""The report of Table 2."""

import statistics as plain

import pytest
from report_folders import blocks, drawing, table2, tables, text, write

from topk_plugin.reference import report


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
