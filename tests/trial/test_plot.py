"""`topk plot`: the figure of any log, also while it grows."""

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from topk_plugin.cli import main
from topk_plugin.trial.steps import figure_paths, read_log

ROW = {"step": 1, "epoch": 0, "batch": 8, "k": 8, "kept_score": 0.5, "dropped_score": None}
ROWS = [ROW, ROW | {"step": 2, "epoch": 1, "k": 4, "dropped_score": -0.5, "threshold": 0.1}]


def test_a_log_that_grows_is_drawn_without_its_half_line(in_own_folder, capsys):
    from matplotlib.image import imread

    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    Path("log.jsonl").write_text(text + '{"step": 3, "ep')
    assert read_log(Path("log.jsonl")) == ROWS
    assert main(["plot", "log.jsonl"]) == 0
    assert capsys.readouterr().out == "figure   log.png (2 generator steps)\n"
    assert imread("log.png")[..., :3].std() > 0.05
    assert main(["plot", "log.jsonl", "--out", "figures"]) == 0
    assert Path("figures/log.png").exists()
    capsys.readouterr()
    for out in ("log.jsonl", "log.jsonl/below"):
        assert main(["plot", "log.jsonl", "--out", out]) == 2
        assert "not written" in capsys.readouterr().err


def test_each_training_of_a_log_has_a_figure_of_its_own(in_own_folder, capsys):
    rows = [*ROWS, ROW | {"process": 7}]
    rows += [row | {"training": 2} for row in ROWS] + [ROW | {"process": 7, "training": 2}]
    Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["plot", "log.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "figure   log.png (2 generator steps)",
        "figure   log-process-7.png (1 generator steps)",
        "figure   log-training-2.png (2 generator steps)",
        "figure   log-process-7-training-2.png (1 generator steps)",
    ]
    assert len([*Path().glob("*.png")]) == 4


@pytest.mark.parametrize(
    ("logs", "figures"),
    [
        ("a/x/log.jsonl", "log"),
        ("a/x/log.jsonl a/y/log.jsonl a/y/l.jsonl", "x-log y-log y-l"),
        ("a/x/log.jsonl b/x/log.jsonl b/x/log.b", "a-x-log.jsonl b-x-log.jsonl b-x-log.b"),
    ],
)
def test_no_figure_takes_the_place_of_another(in_own_folder, logs, figures):
    paths = [Path(log) for log in logs.split()]
    assert [path.name for path in figure_paths(paths, Path("out"))] == figures.split()
    assert len(set(figure_paths(paths, None))) == len(paths)


@pytest.mark.parametrize("text", [None, "", '{"step": 1', "hello\n", "[1]\n", '{"a": 1}\n'])
def test_what_is_no_log_is_refused(in_own_folder, text, capsys):
    if text is not None:
        Path("log.jsonl").write_text(text)
    assert main(["plot", "log.jsonl"]) == 2
    assert "log.jsonl: found" in capsys.readouterr().err
    assert not Path("log.png").exists()
