"""`topk compare`: runs that are started, skipped, resumed and read, and what is said of them."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("filelock")

from scipy import stats

from topk_plugin.cli import main
from topk_plugin.pairs import Summary, paired_difference, telling
from topk_plugin.trial import runs as of_runs
from topk_plugin.trial.alike import alike, of_one_seed
from topk_plugin.trial.arms import Arm, arms_of, flags_of
from topk_plugin.trial.outcome import outcomes, ratio, seeds_for, sentence
from topk_plugin.trial.report import pairs_figure

# what a run does in place of a training: quick, without torch
STAND_IN = """
import json, os, random, sys
arm, seed, out, *more = sys.argv[1:]
seed = int(seed)
print("started", arm, seed, flush=True)
if f"{arm}-{seed}" in more:
    sys.exit("out of luck")
runs = os.path.dirname(os.path.dirname(os.path.dirname(out)))
with open(os.path.join(runs, "trained"), "a") as f:
    f.write(f"{arm} {seed}\\n")
seed = 0 if "fixed" in more else seed
noise = random.Random(seed)
base = noise.gauss(10, 3)
effect = 0.0 if arm == "plain" or "null" in more else -2 + random.Random(seed + 99).gauss(0, 0.3)
value = base + effect
print(f"loss: {value + 1}\\nloss: {value}")
if arm == "top-k":
    print("top-k verdict: 12 generator steps gated\\ntop-k (rank 1) verdict, training 2: last k 8")
with open(os.path.join(out, "result.json"), "w") as f:
    json.dump({"fid": [value], "bad": "many", "nan": float("nan")}, f)
with open(os.path.join(out, "log.csv"), "w") as f:
    f.write("step,loss\\n")
    for step, loss in enumerate([value + 3, value - 1, value]):
        f.write(f"{step},{loss}\\n")
"""


@pytest.fixture
def quick(monkeypatch, in_own_folder):
    """Runs that train nothing; what is typed after -- goes to the stand-in."""

    def command(run):
        arm = "plain" if run.arm.name == "plain" else "top-k"
        words = [w.replace("{out}", str(run.out)).replace("{seed}", "") for w in run.trial.script]
        return [sys.executable, "-S", "-c", STAND_IN, arm, str(run.seed), str(run.out), *words[1:]]

    monkeypatch.setattr(of_runs.Run, "command", command)
    return Path("trial")


METRICS = [
    "--metric",
    "lower:json:{out}/result.json:fid.0",
    "--metric",
    r"regex:loss: (?P<loss>[\d.]+)",
]
SCRIPT = ["--", "train.py", "{out}"]


def compare(*arguments, seeds=4, script=SCRIPT):
    return main(["compare", "--seeds", str(seeds), "--out", "trial", *arguments, *script])


def trained():
    return [Path(line).name for line in Path("trial/runs/trained").read_text().splitlines()]


def test_an_effect_is_found_and_nothing_is_trained_twice(quick, capsys):
    assert compare(*METRICS, seeds=6) == 0
    said = capsys.readouterr().out
    found = json.loads((quick / "report.json").read_text())
    row = next(r for r in found["differences"] if r["metric"] == "fid.0")
    assert row["interval"][0] < -2 < row["interval"][1] < 0
    assert "fid.0: top-k is lower by" in said
    assert "in 6 of 6 seeds, which is better." in said
    assert "Time of top-k:" in said
    assert "| loss | plain |" in said
    assert (quick / "trial.png").stat().st_size > 5000
    assert len(trained()) == 12

    # the same again, with more seeds, another metric and another arm
    assert compare(*METRICS, seeds=6) == 0
    assert capsys.readouterr().out == said
    assert compare(*METRICS, "--metric", "lower:csv:{out}/log.csv:loss@best", seeds=7) == 0
    assert len(trained()) == 14
    assert compare(*METRICS, "--arm", "gamma=0.9", seeds=6) == 0
    assert len(trained()) == 20


def test_a_null_trial_says_that_nothing_changed(quick, capsys):
    script = ["--", "train.py", "{out}", "null"]
    assert compare(*METRICS, "--arm", "gamma=1", script=script) == 0
    said = capsys.readouterr().out
    assert "fid.0: 4 seeds, and each difference is exactly 0: top-k changed nothing." in said


@pytest.mark.parametrize(
    ("script", "remedy"), [([], "put {seed} into"), (["{seed}"], "draw from the {seed}")]
)
def test_seeds_of_a_script_that_seeds_itself_count_as_one(quick, script, remedy, capsys):
    assert compare(*METRICS, script=["--", "train.py", "{out}", "fixed", *script]) == 0
    said = capsys.readouterr().out
    assert "All seeds ended alike, so they count as one: the script seeds itself" in said
    assert remedy in said
    assert "in one seed, which cannot tell it from chance.\n" in said
    assert "in 4 of 4 seeds" not in said
    assert not any(end in said for end in (", +", ", -"))  # of an interval
    found = json.loads((quick / "report.json").read_text())
    assert [row["interval"] for row in found["differences"]] == [None, None]
    assert len(found["values"]["loss"]["plain"]) == 4


@pytest.mark.parametrize("pattern", [r"^loss: ([-\d.]+)$", r"loss: ([-\d.]+)\n\Z", r"([-\d.]+)"])
def test_a_pattern_reads_lines_of_the_script_alone(quick, pattern, capsys):
    assert compare("--metric", f"regex:{pattern}", seeds=2) == 0
    found = json.loads((quick / "report.json").read_text())
    assert found["missing"] == []
    for arm, by_seed in found["values"][pattern].items():
        for seed, value in by_seed.items():
            log = quick / "runs" / arm / f"seed-{seed}" / "out" / "log.csv"
            assert value == float(log.read_text().splitlines()[-1].split(",")[1])


@pytest.mark.parametrize(
    ("flags", "script", "said"),
    [
        ([], SCRIPT, "Pairs share a seed;"),
        (["--no-seed"], SCRIPT, "Pairs share no seed;"),
        (["--no-seed"], [*SCRIPT, "{seed}"], "Pairs share a seed;"),
    ],
)
def test_a_report_says_whether_pairs_share_a_seed(quick, flags, script, said, capsys):
    assert compare(*METRICS, *flags, seeds=1, script=script) == 0
    assert said in capsys.readouterr().out


def test_a_report_is_printed_where_its_signs_cannot_be(quick, monkeypatch):
    with open("printed", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "__stdout__", file)
        assert compare(*METRICS, seeds=2) == 0
    assert "mean \\xb1 std" in Path("printed").read_text()
    assert "mean ± std" in (quick / "report.md").read_text(encoding="utf-8")


def test_one_that_fails_is_named_and_ends_no_other(quick, capsys):
    script = ["--", "train.py", "{out}", "top-k-1"]
    assert compare(*METRICS, script=script) == 1
    said = capsys.readouterr().out
    assert "top-k, seed 1 failed with status 1." in said
    assert "out of luck" in said
    assert "3 of 3" in said
    assert len(trained()) == 7
    assert compare(*METRICS, script=script) == 1  # it is tried again
    assert len(trained()) == 7


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("json:{out}/none.json:fid", "found no "),
        ("json:{out}/result.json:fad", "has no 'fad'"),
        ("json:{out}/result.json:bad", "'bad' in"),
        ("json:{out}/result.json:nan", "is nan"),
        ("json:{out}/log.csv:fid", "is no JSON"),
        ("csv:{out}/log.csv:lost", "has no column 'lost': found step, loss"),
        ("csv:{out}/log.csv:loss@best", "write higher: or lower:"),
        ("regex:lost ([0-9]+)", "no line of the output matches"),
        ("python:math:no_such", "AttributeError"),
    ],
)
def test_a_number_that_is_not_there_is_said_once(quick, metric, why, capsys):
    assert compare("--metric", metric, seeds=2) == 0
    said = capsys.readouterr().out
    [line] = [line for line in said.splitlines() if "no number of plain, seed 0 and 3 more" in line]
    assert why in line


def test_metrics_of_one_name_stay_apart(quick):
    spec = "csv:{out}/log.csv:loss"
    early = "python:early:read"
    Path("early.py").write_text("def read(out): return {'loss': 1.0, 'other': 2.0}\n")
    metrics = ["--metric", f"higher:{spec}", "--metric", f"lower:{spec}", "--metric", early]
    assert compare(*metrics, seeds=2) == 0
    found = json.loads((quick / "report.json").read_text())
    names = [f"loss (higher:{spec})", f"loss (lower:{spec})", f"loss ({early})", "other"]
    assert [*found["values"]] == names
    assert [row["better"] for row in found["differences"]] == ["higher", "lower", None, None]
    assert found["values"][names[2]]["plain"] == {"0": 1.0, "1": 1.0}
    assert found["values"][names[0]] == found["values"][names[1]] != found["values"][names[2]]


def test_the_numbers_of_a_function_that_changed_are_others(quick):
    for number in (1.0, 22.0):
        Path("mine2.py").write_text(f"def read(out): return {number}\n")
        sys.modules.pop("mine2", None)
        importlib.invalidate_caches()
        assert compare("--metric", "python:mine2:read", seeds=1) == 0
        found = json.loads((quick / "report.json").read_text())
        assert found["values"] == {"read": {arm: {"0": number} for arm in ("plain", "top-k")}}


def test_numbers_whose_file_was_cut_are_measured_again(quick, capsys):
    assert compare(*METRICS, seeds=2) == 0
    said = capsys.readouterr().out
    for text in ("", '{"'):
        (quick / "runs/plain/seed-0/metrics.json").write_text(text)
        assert compare(*METRICS, seeds=2) == 0
        assert capsys.readouterr().out == said


def test_a_function_gives_several_numbers(quick, capsys):
    Path("mine.py").write_text(
        "import json\ndef read(out):\n    v = json.loads((out / 'result.json').read_text())\n"
        "    return {'a': v['fid'][0], 'b': 1.0}\n"
    )
    assert compare("--metric", "higher:python:mine:read", seeds=2) == 0
    said = capsys.readouterr().out
    assert "| a | plain |" in said
    assert "b: 2 seeds, and this number is the same in each pair." in said


@pytest.mark.parametrize(
    ("arguments", "script", "said"),
    [
        (["--metric", "fidd:x:y"], SCRIPT, "expected [higher:|lower:]KIND"),
        (["--metric", "regex:("], SCRIPT, "which is none"),
        (["--metric", "regex:a"], SCRIPT, "found 0 groups"),
        (["--metric", "json:r.json:fid"], SCRIPT, "which all runs share"),
        (
            ["--metric", "json:{out}/r.json:fid"],
            ["--", "train.py"],
            "found no {out} in the command",
        ),
        (["--arm", "gamma=2"], SCRIPT, "expected a number in (0, 1]"),
        (["--arm", "gama=0.9"], SCRIPT, "did you mean 'gamma'?"),
        (["--arm", "gamma"], SCRIPT, "expected settings such as"),
        (["--arm", "nu=0.9", "--arm", "nu=0.9"], SCRIPT, "expected arms that differ"),
        (["--arm", "nu=0.9,nu=0.8"], SCRIPT, "found nu twice"),
        (["--no-enabled"], SCRIPT, "expected a trial of top-k"),
        (["--seeds", "0"], SCRIPT, "expected at least 1"),
        ([], ["--"], "found no script"),
    ],
)
def test_a_command_that_is_no_trial_is_refused(quick, arguments, script, said, capsys):
    assert main(["compare", "--out", "trial", *arguments, *script]) == 2
    assert said in capsys.readouterr().err
    assert not quick.exists()


def test_the_folder_of_another_trial_or_of_nobodys_is_refused(quick, capsys):
    assert compare(*METRICS, seeds=1) == 0
    assert compare(*METRICS, "--nu", "0.75", seeds=1) == 2
    assert "is the trial of another command" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/.lock").touch()  # of one that was killed before it began
    Path("mine/thesis.txt").touch()
    assert main(["compare", "--out", "mine", *SCRIPT]) == 2
    assert "holds files and no trial" in capsys.readouterr().err
    for out in ("mine/thesis.txt", "mine/thesis.txt/below"):
        assert main(["compare", "--out", out, *SCRIPT]) == 2
        assert "can be no folder of a trial" in capsys.readouterr().err
    Path("mine/thesis.txt").unlink()
    assert main(["compare", "--seeds", "1", "--out", "mine", *SCRIPT]) == 0


def test_settings_that_changed_outside_the_command_are_refused(quick, monkeypatch, capsys):
    config = Path("topk.yaml")
    for arm, gamma, file, said in [
        ("nu=0.5", "0.9", "every: 5", ""),
        ("nu=0.5", "0.2", "every: 5", "nu=0.5, gamma: 0.9 there, 0.2 now"),
        ("nu=0.5", "0.9", "every: 7", "nu=0.5, every: 5 there, 7 now"),
        ("nu=0.7", "0.2", "every: 5", ""),  # of an arm that was not there
        ("nu=0.7", "0.9", "every: 5", "nu=0.7, gamma: 0.2 there, 0.9 now"),
    ]:
        config.write_text(file)
        monkeypatch.setenv("TOPK_GAMMA", gamma)
        given = ["--arm", arm, "--config", str(config)]
        assert compare(*given, seeds=1) == (2 if said else 0)
        assert said in capsys.readouterr().err


def test_no_run_starts_once_all_are_stopped(quick, monkeypatch):
    stopped, clear = threading.Event(), of_runs.shutil.rmtree

    def slow(folder, **how):
        if folder.name == "seed-1":
            stopped.wait(60)
            time.sleep(0.5)
        clear(folder, **how)

    def tell(run):
        stopped.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(of_runs, "shutil", SimpleNamespace(rmtree=slow))
    trial = of_runs.Trial(quick.absolute(), (), ("train.py", "{out}"), True, 1)
    with pytest.raises(KeyboardInterrupt):
        of_runs.train([of_runs.Run(trial, arms_of([])[0], seed) for seed in range(3)], 2, tell)
    assert trained() == ["plain 0"]


@pytest.mark.slow
def test_killed_at_a_random_moment_it_goes_on_to_the_same_report(tmp_path, monkeypatch):
    """With real runs, and nobody left behind that goes on writing."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, random, sys, time, torch\n"
        "time.sleep(1)\n"
        "open(sys.argv[1] + '/pid', 'w').write(str(os.getpid()))\n"
        "print('value', random.random() + float(torch.rand(())), flush=True)\n"
    )
    command = [sys.executable, "-m", "topk_plugin", "compare", "--seeds", "2", "--workers", "2"]
    command += ["--metric", r"regex:value ([\d.]+)", "--arm", "enabled=no", "--out"]
    tail = ["--", str(script), "{out}"]
    killed = subprocess.Popen([*command, "a", *tail], cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("a/runs/*/*/output.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reports = []
    for out in ("a", "b"):
        done = subprocess.run([*command, out, *tail], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / out / "report.json").read_text())
        reports.append((found["values"], found["differences"]))
    assert reports[0] == reports[1]
    [row] = reports[0][1]
    assert row["says"].endswith("each difference is exactly 0: top-k changed nothing.")
    values = reports[0][0]["value ([\\d.]+)"]["plain"]
    assert values["0"] != values["1"]
    for pid in tmp_path.glob("*/runs/*/*/out/pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


# --- words and numbers ----------------------------------------------------------------------------


def said_of(plain, topk, better=""):
    of = {"m": {"plain": dict(enumerate(plain)), "top-k": dict(enumerate(topk))}}
    [outcome] = outcomes(of, {"m": better})
    return sentence(outcome)


def test_sentences():
    assert said_of([], [1.0]) == "m: no seed has a number without and with top-k."
    assert said_of([1.0], [2.0]).startswith("m: top-k is higher by 1.00 in one seed, which cannot")
    said = said_of([1, 2, 3, 4], [1.5, 2.6, 3.4, 4.5], "lower")
    assert said == "m: top-k is higher by 0.50 [0.37, 0.63] in 4 of 4 seeds, which is worse."
    said = said_of([1, 2, 3, 4], [2, 1, 4, 2.8])
    assert said.startswith(
        "m: 4 seeds cannot tell: the difference is -0.050 [-1.984, +1.884]; about"
    )
    assert said.endswith("would tell a difference of 0.050.")


def test_an_end_that_rounding_would_hide_shows_its_sign():
    said = said_of([0, 0, 0], [0.10, 0.20, 0.247])
    assert said.startswith("m: 3 seeds cannot tell: the difference is +0.182 [-0.004, +0.369]; ")
    assert telling(Summary(2, 0.1, 0.1, (-0.0007, 0.2)), 2) == 3
    assert telling(Summary(2, 0.1, 0.1, (0.0, 0.2)), 2) == 2
    assert telling(Summary(1, 0.1, None, None), 2) == 2


@pytest.mark.parametrize("size", [0.01, 0.2, 0.6, 1.0, 1.7, 3.0])
def test_seeds_that_are_said_to_tell_do_so_four_times_in_five(size):
    """By draws of the t test itself: a mean and a spread, apart from each other."""
    n = seeds_for(Summary(2, -size, 1.0, None))
    random = np.random.default_rng(0)

    def share(n):
        means = random.normal(size, n**-0.5, 100_000)
        spreads = np.sqrt(random.chisquare(n - 1, 100_000) / (n - 1) / n)
        return (np.abs(means / spreads) > stats.t.ppf(0.975, n - 1)).mean()

    assert share(n) > 0.795
    assert n == 3 or share(n - 1) < 0.805
    assert seeds_for(Summary(n + 5, size, 1.0, None)) == n + 6


def test_no_seeds_are_advised_where_none_are_known():
    assert said_of([0, 0, 0, 0], [1, -1, 2, -2]) == (
        "m: 4 seeds cannot tell: the difference is +0.00 [-2.91, +2.91]."
    )
    said = said_of([0, 0, 0, 0], [1, -1, 2, -2.0001])
    assert "; more than 1,000,000 would tell a difference of 0.000025." in said


def test_intervals_cover_in_ninety_five_of_a_hundred_trials():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        plain = random.normal(10, 3, 5)
        topk = plain - 0.8 + random.normal(0, 0.5, 5)
        low, high = paired_difference(dict(enumerate(plain)), dict(enumerate(topk))).interval
        covered += low <= -0.8 <= high
    assert 930 <= covered <= 970


def test_how_runs_began_decides_whether_seeds_are_one():
    modes = {"modes": {"plain": {0: 8.0, 1: 8.0}, "top-k": {0: 8.0, 1: 7.0}}}
    assert alike(modes, {}) == "ended"
    assert alike(modes, {"top-k": {0: (0.1,), 1: (0.2,)}}) == ""
    assert alike(modes, {"top-k": {0: (0.1,), 1: (0.1,)}}) == "began"
    assert alike(modes, {"top-k": {0: (0.1,)}}) == "ended"  # of one log nothing is known
    assert alike(modes | {"fid": {"plain": {0: 2.0, 1: 2.1}}}, {}) == ""
    assert alike({"modes": {"plain": {0: 8.0}, "top-k": {0: 8.0}}}, {}) == ""
    gap = {"m": {"plain": {0: 1.0, 1: 1.0}, "top-k": {1: 1.0, 2: 1.0}}}
    assert of_one_seed(gap) == {"m": {"plain": {1: 1.0}, "top-k": {1: 1.0}}}


def test_arms_and_flags_of_settings():
    plain, first, second = arms_of(["gamma=0.9,nu=0.5", "heads=0,1,restore=10:20,spare=no"])
    assert (plain.name, plain.flags) == ("plain", ("--no-enabled",))
    assert first.flags == ("--gamma=0.9", "--nu=0.5")
    assert second.flags == ("--heads=0,1", "--restore=10:20", "--no-spare")
    assert arms_of([])[1] == ("top-k", ())
    given = {"gamma": 0.9, "restore": [10, 20], "heads": ["a", 1], "spare": False, "nu": None}
    flags = ["--gamma=0.9", "--restore=10:20", "--heads=a,1", "--no-spare"]
    assert sorted(flags_of(given)) == sorted(flags)


def test_no_two_arms_share_a_folder():
    trial = of_runs.Trial(Path("trial"), (), (), True, 1)
    names = ["gamma=0.9,start_epoch=2", "top-k", "heads=a:b", "heads=a_b", "heads=a/b", "heads=a%b"]
    folders = [of_runs.Run(trial, Arm(name, ()), 0).folder for name in names]
    assert [folder.parent.name for folder in folders[:2]] == names[:2]  # as trials before have it
    assert len({str(folder) for folder in folders}) == len(names)
    assert {folder.parents[1] for folder in folders} == {Path("trial/runs")}


def test_a_dollar_in_a_name_begins_no_formula(tmp_path):
    name = r"^a$|^loss: \$([\d.]+)$"
    rows = outcomes({name: {"plain": {0: 1.0}, "top-k": {0: 2.0}}}, {name: ""})
    pairs_figure(rows).savefig(tmp_path / "pairs.png")
    assert pairs_figure(rows).axes[0].get_title().replace(r"\$", "$") == name


def test_the_title_of_a_long_metric_stays_in_its_figure():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    name = "Frechet distance by classifier of digits, 1,797 of 8x8 (99.4% right)"
    values = {arm: {0: 1.0, 1: 2.0} for arm in ("plain", "gamma=0.99,nu=0.5")}
    figure = pairs_figure(outcomes({name: values, "loss": values}, {name: "lower", "loss": ""}))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    places = [panel.title.get_window_extent(canvas.get_renderer()) for panel in figure.axes]
    assert all(0 <= place.x0 < place.x1 <= figure.bbox.width for place in places)
    assert places[0].x1 < places[1].x0


def test_a_ratio_of_times_is_geometric_and_never_negative():
    plain, topk = {0: 1.0, 1: 10.0, 2: 3.0}, {0: 2.0, 1: 5.0, 2: 30.0, 3: 7.0}
    found = ratio(plain, topk)
    assert found.n == 3
    assert found.mean == pytest.approx((2.0 * 0.5 * 10.0) ** (1 / 3))
    low, high = found.interval
    assert 0 < low < found.mean < high
    assert low * high == pytest.approx(found.mean**2)
    assert ratio(plain, {}) is None
    assert ratio({0: 2.0}, {0: 1.0}) == (1, 0.5, None, None)
