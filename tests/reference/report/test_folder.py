"""A run's folder: which rows count, which members are left out, and what is damaged."""

import json
import math

import pytest
from report_folders import drawing, score, table1, table2, tables, text, write

from topk_plugin.errors import ConfigError
from topk_plugin.reference import report


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


def test_each_row_may_say_how_long_its_training_is(tmp_path):
    rows = [row | {"iterations": 240} if row["arm"] == "bigan" else row for row in table2()]
    folder = write(tmp_path / "run", "table2", rows, settings={})
    assert "held-out digit 4, BiGAN, seed 1: unfinished: iteration 120 of 240" in text(folder)
    assert "Left out: 2 of 6" in text(folder)
    assert "120 to 240 iterations" in text(folder)


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
