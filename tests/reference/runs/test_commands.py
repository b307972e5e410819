"""`topk reproduce` and `topk report`, as a person types them."""

import json
import re
import sys

import pytest
from small_runs import TINY

from topk_plugin.cli import main
from topk_plugin.reference import mixture
from topk_plugin.reference import report as reports
from topk_plugin.reference.runs import Job, reproduction


def test_the_command_that_is_stopped_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(mixture.Training, "advance", stopped)
    command = ["reproduce", "table1", "--device", "cpu", "--workers", "1", "--out"]
    assert main([*command, str(tmp_path / "run")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table1", "--dataset", "mnist"], "--dataset: found 'mnist', expected nothing: Table 1"),
        (["figure2", "--download"], "--download: found 'true', expected nothing: Figures 2"),
    ],
)
def test_what_the_command_cannot_do_is_said(arguments, expected, capsys):
    assert main(["reproduce", *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["nonsense"],
            "nonsense: unknown result; Known: table1, table2, table3, table4, table5, neurips",
        ),
        (["figure5"], "did you mean 'figure4'|did you mean 'figure2'|did you mean 'figure3'"),
        (["table1", "--set", "x"], "--set: found 'x', expected NAME=VALUE"),
        (["table1", "--set", "hiden=8"], "--set hiden: unknown setting; did you mean 'hidden'"),
        (["table1", "--cells", "3"], "--cells 3: unknown cell"),
        (["table1", "--arms", "gan,topk"], "--arms topk: .* did you mean 'top-k'"),
        (["table1", "--preset", "shot"], "--preset shot: .* did you mean 'short'"),
        (["table1", "--worker", "2"], "--worker: unknown option; did you mean '--workers'"),
    ],
)
def test_a_mistake_in_the_command_is_said(arguments, expected, capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["reproduce", *arguments, "--out", str(out)]) == 2
    assert re.search(f"topk: ConfigError: .*{expected}", capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("text", ["a", "25,", "1.5"])
def test_cells_are_whole_numbers(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", "table1", "--cells", text])
    expected = f"argument --cells: found '{text}', expected whole numbers such as 25,64"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_says_what_to_train_and_shows_it(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["topk", "reproduce", "figure3", "--set", "a b"])
    reported = []
    monkeypatch.setattr(reports, "report", lambda folders: reported.append(folders) or 0)
    out = tmp_path / "run"
    arguments = ["reproduce", "figure3", "--preset", "short", "--seeds", "3", "--device", "cpu",
                 "--workers", "2", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr(reproduction, "train_all", told_of_progress)
    settings = TINY | {"step": "adam", "probes": "20"}
    for item in settings.items():
        arguments += ["--set", "=".join(item)]
    assert main(arguments) == 0
    assert reported == [[out]]
    run = json.loads((out / "run.json").read_text())
    assert run["command"] == "topk reproduce figure3 --set 'a b'"
    assert (run["experiment"], run["preset"], run["seeds"]) == ("probe", "short", 3)
    assert (run["cells"], run["arms"], run["device"]) == ([25], ["gan"], "cpu")
    assert run["settings"]["step"] == "adam"
    assert run["jobs"] == {"000": [[25, "gan", 0], [25, "gan", 1]], "001": [[25, "gan", 2]]}
    shown = capsys.readouterr().err
    if terminal:
        assert "all 2 jobs" in shown
        assert "1/2" in shown
        assert "000: 25, gan, seed 0, 1" in shown
    else:
        assert re.findall(r"s  (.*)\n", shown) == [
            "000: 25, gan, seed 0, 1: 6 of 12 iterations",
            "001: 25, gan, seed 2: 2 of 12 iterations",
            "000: 25, gan, seed 0, 1: 12 of 12 iterations",
        ]


def told_of_progress(jobs: list[Job], workers: int, show) -> None:
    """In the place of the training."""
    assert workers == 2
    for told in ((0, 1, 12), (0, 6, 12), (0, 6, 12), (1, 2, 12), (0, 12, 12), (0, 12, 12)):
        show(*told)


def test_a_report_of_a_folder_that_holds_no_run(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["report", str(folder)]) == 2
        assert f"ConfigError: {folder}" in capsys.readouterr().err
