"""The report of Tables 3 and 4 and of the later version's: distances beside their like alone."""

import pytest
from report_folders import SETTINGS, blocks, table3, table5, tables, tables3, text, write

from topk_plugin.reference import report
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.report import folder as folders


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


def test_numbers_of_another_gamma_stand_beside_none_of_the_papers(tmp_path):
    arms = dict.fromkeys(EXPERIMENTS["table4"].arms, (20.0,))
    folder = write(tmp_path / "run", "table4", table5(arms, 128, **IMAGENET))  # gamma 0.99
    assert [row[-2:] for row in tables(folder)[0].rows] == [["-", "-"]]
    said = "\n".join(b for b in blocks(folder) if isinstance(b, str))
    assert "numbers are left out: they are of gamma 0.98 and nu 0.5." in said


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
