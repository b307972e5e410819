"""`topk plot`: the figure of any log, also while it grows."""

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from topk_plugin.cli import main
from topk_plugin.trial.steps import read_log

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


@pytest.mark.parametrize("text", [None, "", '{"step": 1', "hello\n", "[1]\n", '{"a": 1}\n'])
def test_what_is_no_log_is_refused(in_own_folder, text, capsys):
    if text is not None:
        Path("log.jsonl").write_text(text)
    assert main(["plot", "log.jsonl"]) == 2
    assert "log.jsonl: found" in capsys.readouterr().err
    assert not Path("log.png").exists()
