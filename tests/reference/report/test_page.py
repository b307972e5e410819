"""`topk report`: what it writes and prints."""

import sys

import pytest
from report_folders import probe, table1, table2, text, write

from topk_plugin.errors import RunError, TopKError
from topk_plugin.reference import report
from topk_plugin.reference.experiments import EXPERIMENTS, RESULTS
from topk_plugin.reference.models import MODELS
from topk_plugin.reference.report import arms, page
from topk_plugin.reference.report import folder as folders

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


def test_all_that_can_be_reproduced_can_be_reported():
    assert {*page.SECTIONS} == {*folders.KINDS} == {e.trainer for e in EXPERIMENTS.values()}
    assert {*RESULTS.values()} == {*EXPERIMENTS}
    assert {arm for e in EXPERIMENTS.values() if e.trainer == "images" for arm in e.arms} <= {
        *arms.ARMS
    }
    assert arms.ARMS["top-k+sagan-128"] == f"top-k {MODELS['sagan-128'].title}"
