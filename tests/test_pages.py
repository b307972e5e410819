"""What the pages say is so: every block runs or is checked, links lead somewhere, tables agree.

The pages on adapters and patches are followed as written by test_recipes.py.
"""

import argparse
import ast
import contextlib
import dataclasses
import doctest
import importlib
import inspect
import io
import json
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest
import tomllib
import torch
import yaml
from pages import (
    PAGES,
    ROOT,
    Table,
    anchors,
    blocks,
    code,
    commands,
    links,
    prose,
    shell,
    table,
    tables,
)
from torch import nn
from torch.distributed.run import get_args_parser as torchrun_parser

import topk_plugin
from topk_plugin import TopK, TopKConfig, add_arguments, attach, cli
from topk_plugin.errors import ConfigError
from topk_plugin.hooks import GROUP, Hooks
from topk_plugin.reference.experiments import EXPERIMENTS, RESULTS
from topk_plugin.script import ScriptTopK

PACKAGE = Path(topk_plugin.__file__).parent
REFERENCE, RUNS = "topk_plugin/reference/README.md", "topk_plugin/reference/results/README.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEADER = r"top-k ACTIVE: .+ \(.+\), direction (high|low|read from the loss), k \d+ of \d+, .+"
VERDICT = (
    r"top-k verdict: \d+ generator steps gated, \d+ of \d+ rows dropped, \d+ epochs ended, "
    r"last k \d+ of \d+, 0 non-finite scores; epochs counted by .+"
)
ADAPTERS = {
    path.stem: importlib.import_module(f"topk_plugin.adapters.{path.stem}").ADAPTER
    for path in ROOT.glob("adapters/*.py")
    if path.stem != "__init__"
}
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(page, words) for page in PAGES for words in shell(page)]


def label(value):
    if isinstance(value, tuple):
        return f"{value[0]}-{getattr(value, 'line', None) or ' '.join(value[1])[:50]}"
    return str(value)


def test_the_pages():
    assert {*PAGES} == {"README.md", "adapters/WRITING.md", REFERENCE, RUNS} | {
        f"{folder}/README.md"
        for folder in (
            "adapters",
            "patches",
            "topk_plugin",
            "topk_plugin/core",
            "topk_plugin/trial",
            "tests",
            "tests/benchmarks",
        )
    }


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_examples_print_what_the_page_says(page):
    found = doctest.testfile(str(PAGES[page]), module_relative=False)
    assert found.failed == 0
    assert found.attempted >= (page == "README.md") * 6


@pytest.mark.parametrize("block", BLOCKS, ids=label)
def test_every_block_runs_or_is_checked(block):
    if block.mark.startswith("file: "):  # of the recipes
        if block.language == "python":
            ast.parse(block.text)
    elif block.mark.startswith("from: "):
        source = (ROOT / block.mark.removeprefix("from: ")).read_text()
        assert "".join(block.text.split()) in "".join(source.split())
    elif block.language == "python" and ">>>" in block.text:
        pass  # see above
    elif block.language == "python":
        assert block.page == "README.md"  # see below
    elif block.language == "toml":
        offered = tomllib.loads(block.text)["project"]["entry-points"][GROUP]
        assert all(re.fullmatch(r"[\w.]+(:\w+)?", value) for value in offered.values())
    elif block.language == "yaml":
        assert TopKConfig.from_config(yaml.safe_load(block.text), path="studiogan").enabled
    elif block.language == "diff":
        assert all(line[:1] in "+- " for line in block.text.splitlines())  # see test_recipes.py
    elif block.language == "text":
        check_text(block.text)
    else:
        assert block.language == "sh"  # see below


def check_text(text):
    """What a command prints, or a drawing."""
    if "top-k verdict" in text:
        kinds = {"ACTIVE": HEADER, "verdict": VERDICT}
        said = [line for line in text.splitlines() if "top-k ACTIVE" in line or "verdict" in line]
        assert len(said) == 2
        for line in said:
            line = line.removeprefix("[top-k] ")
            assert re.fullmatch(kinds[line.split()[1].rstrip(":")], line), line
    elif "►" in text:  # those that are kept are the highest
        scores = [(float(n), box) for box, n in re.findall(r"([■□])\s+(-?\d\.\d)", text)]
        k, batch = map(int, re.search(r"k = (\d) of (\d)", text).groups())
        assert [box for _, box in sorted(scores, reverse=True)] == ["■"] * k + ["□"] * (batch - k)
    else:  # see test_recipes.py, and the tests of the drawings
        assert re.match(r"top-k check of |(\w{12}\n)+|.*\n? +[\w/]+  +", text), text


def test_ways_a_and_b():
    """The fragments of a loop, with small networks, data and a loss."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(4, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(generator.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(torch.randn(16, 2), batch_size=8)
    names = {"TopK": TopK, "attach": attach, "critic": critic, "G": generator, "loader": loader}

    def generator_loss(scores):
        return -scores.mean()

    def train():
        for _ in range(3):
            for _ in loader:
                optimizer.zero_grad()
                generator_loss(critic(generator(torch.randn(8, 4)))).backward()
                optimizer.step()

    way_a, way_b = [
        b.text for b in blocks("README.md") if b.language == "python" and ">>>" not in b.text
    ]
    names |= {"generator_loss": generator_loss, "train": train}
    names["fake"] = generator(torch.randn(8, 4))
    exec(way_a, names)
    names["loss"].backward()
    assert (names["topk"].k(1000), names["topk"].report().epochs) == (990, 1)
    names["topk"] = TopK(gamma=0.5, nu=0.5)
    exec(way_b, names)
    report = names["topk"].report()
    assert (report.steps, report.rows, report.epochs) == (6, 48, 3)
    assert report.dropped == 16


# --- commands -----------------------------------------------------------------------------------


class Parsed(Exception):
    """A script would begin its work now."""


@pytest.mark.parametrize("command", COMMANDS, ids=label)
def test_commands_are_known(command, monkeypatch):
    page, words = command
    while re.fullmatch(r"(PYTHONPATH|TOPK_\w+)=\S+", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "topk":
        check_topk(rest)
    elif program == "torchrun":
        options = torchrun_parser().parse_args(rest)
        assert options.training_script == "topk_plugin"
        check_topk(options.training_script_args)
    elif program == "pip":
        check_pip(rest)
    elif program == "pytest":
        check_pytest(rest)
    elif rest and rest[0].startswith("tests/"):
        assert program == "python"
        check_script(rest, monkeypatch)
    else:
        assert page == "patches/README.md"  # see test_recipes.py
        assert program in ("sha256sum", "printf", "cut", "tr", "python")


def check_topk(words):
    options, unknown = cli._parser().parse_known_args(words)
    assert not unknown
    given = vars(options)
    adapter = given.get("adapter")
    assert adapter is None or adapter in {*ADAPTERS, "tiny_gan", "auto"}
    if "gamma" in given:
        TopKConfig.from_sources(given, {}, None)
        assert len(options.script) > 1
        assert adapter is None or not options.critic  # or nothing is named
    if "result" in given:
        check_experiment(options)


def check_experiment(options):
    experiment = EXPERIMENTS[RESULTS[options.result]]
    assert options.preset in experiment.presets
    assert {*(options.arms or ())} <= {*experiment.arms}
    trainer = importlib.import_module(f"topk_plugin.reference.{experiment.trainer}")
    known = {field.name for field in dataclasses.fields(trainer.Settings)}
    given = {name for name in ("dataset", "data", "download") if getattr(options, name)}
    assert {text.partition("=")[0] for text in options.set} | given <= known


def check_pip(words):
    assert words[0] == "install"
    for word in words[1:]:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert {*extras[1].split(",")} <= {*PROJECT["project"]["optional-dependencies"]}
        elif word not in ("--no-deps", "-e", "."):
            assert any(word in (adapter.install or "").split() for adapter in ADAPTERS.values())


def check_pytest(words):
    marked = words.index("-m") if "-m" in words else len(words)
    markers = [
        text.partition(":")[0] for text in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    ]
    assert {*words[marked + 1 :]} <= {*markers}
    if (ROOT / "tests/core").is_dir():
        assert all((ROOT / word).exists() for word in words[:marked])


def check_script(words, monkeypatch):
    """A benchmark's own parser takes the arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, arguments=None):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str((ROOT / words[0]).parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def flags_of(parser):
    found = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for inner in action.choices.values() for flag in flags_of(inner)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_is_set_as_code_is_known(page, monkeypatch):
    """Commands, flags, names and files in the prose."""
    parser = cli._parser()
    [subcommands] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    with_topk = argparse.ArgumentParser()
    add_arguments(with_topk)
    known = flags_of(parser) | flags_of(with_topk)
    for path in (*ROOT.glob("tests/benchmarks/*.py"), ROOT / "tests/others/run.py"):
        known |= {*re.findall(r'add_argument\("(--\w+)"', path.read_text())}
    known |= {"--netD", "--pretrained_model", "--hand", "--no-deps"}  # of upstreams and contract.py
    for text in code(page):
        words = text.split()
        if words[0] == "topk" and len(words) > 1:
            inner = subcommands.choices[words[1]]
            before = words[: words.index("--")] if "--" in words else words
            assert {w.partition("=")[0] for w in before if w.startswith("-")} <= flags_of(inner)
        elif re.match(r"(PYTHONPATH=\S+ )?python tests/", text):
            [script] = commands(text)
            with monkeypatch.context() as patch:
                check_script(script[script.index("python") + 1 :], patch)
        elif words[0].startswith("--"):
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert flags <= known, text
        elif re.fullmatch(r"topk_plugin(\.\w+)+(\(.*\))?", text):
            if text.partition("(")[0] not in (
                "topk_plugin.patches.tiny_gan",
                "topk_plugin.adapters",
            ):
                pkgutil.resolve_name(text.partition("(")[0])
        elif re.fullmatch(r"(topk_plugin|tests|adapters|patches)/[a-z_/]+\.py", text):
            assert (ROOT / text).exists() or "tiny" in text, text


def test_metrics_are_there():
    named = re.search(
        r"Metrics are functions .*?`topk_plugin.reference`", prose(REFERENCE), re.DOTALL
    )
    for name in re.findall(r"`(\w+\.\w+)`", named[0]):
        if not name.startswith("topk_plugin"):
            assert callable(pkgutil.resolve_name(f"topk_plugin.reference.{name}"))


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_marked_commands(name):
    """A script that checks the project runs them as written."""
    [block] = [b for b in blocks("README.md") if b.mark == f"command: {name}"]
    assert block.language == "sh"
    assert block.text.startswith("pip install ")


# --- links and lengths --------------------------------------------------------------------------

REPORTS = sorted(PACKAGE.glob("reference/results/*/report.md"))


@pytest.mark.parametrize(
    "path", [*PAGES.values(), *REPORTS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_somewhere(path):
    for target in links(path):
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert there.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(there), target


def test_every_page_is_linked():
    leads = {
        (path.parent / target.partition("#")[0]).resolve()
        for path in PAGES.values()
        for target in links(path)
    }
    assert {path.resolve() for path in PAGES.values()} - {(ROOT / "README.md").resolve()} <= leads


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page):
    """But for tables, and what a command prints."""
    long = [line for line in prose(page).splitlines() if len(line) > 100 and line[0] != "|"]
    assert not long
    lines = PAGES[page].read_text().splitlines()
    assert len(lines) <= (220 if page == "README.md" else 250)
    if page == "README.md":
        shown = [b.text for b in blocks(page) if b.language != "text"]
        assert all(len(line) <= 100 for text in shown for line in text.splitlines())


# --- tables of facts of the code ----------------------------------------------------------------


def test_the_table_of_settings():
    rows = {row[0]: row[1] for row in table("README.md", "setting")}
    settings = {field.name: field.default for field in dataclasses.fields(TopKConfig)}
    shown = {name: "" if default == () else str(default) for name, default in settings.items()}
    assert rows == {name: "true" if text == "True" else text for name, text in shown.items()}


def test_the_table_of_hooks():
    rows = table("README.md", "hook")
    hooks = {name: getattr(Hooks, name) for name in vars(Hooks) if name.startswith("topk_")}
    assert {row[0] for row in rows} == {
        f"{name}({', '.join([*inspect.signature(hook).parameters][1:])})"
        for name, hook in hooks.items()
    }
    for hook, _, returns in rows:
        annotation = str(inspect.signature(hooks[hook.partition("(")[0]]).return_annotation)
        assert (returns == "") == (annotation == "None")


def test_the_bundled_plugins():
    with pytest.raises(ConfigError) as refused:
        TopK(plugins=["nobody's"])
    bundled = str(refused.value).rpartition("Known: ")[2].split(", ")
    section = prose("README.md").split("\n## Plugins\n")[1].split("\n## ")[0]
    assert {*re.findall(r"`(\w+-k)`", section)} == {*bundled}


def verified(adapter):
    return " ".join([adapter.distribution or "", *adapter.versions]).strip()


def test_the_readme_names_each_adapter():
    section = prose("README.md").partition("### Repositories with an adapter")[2]
    named = section.partition("[adapters/README.md]")[0]
    assert re.findall(r"`(\w+)`", named) == sorted(ADAPTERS)


def test_the_table_of_adapters():
    rows = {row[0]: row[1:] for row in table("adapters/README.md", "adapter")}
    assert [*rows] == sorted(ADAPTERS)
    for name, (upstream, version, seam, realistic, epoch) in rows.items():
        adapter = ADAPTERS[name]
        assert (upstream, version) == (adapter.upstream, verified(adapter))
        kind, _, where = seam.partition(": ")
        assert kind == adapter.seam
        assert realistic == adapter.direction or adapter.direction is None
        assert epoch == adapter.epoch
        places = [f"{wrap.module}.{wrap.name}" for wrap in adapter.wraps if wrap.wrapper]
        if adapter.seam == "source":
            places = [f"{adapter.patch.folder}/{p.place.file} {p.place.scope}"
                      for p in adapter.patch.topk_places]  # fmt: skip
        named = [w for w in re.findall(r"[\w./]+", where) if re.search(r"[._/]|^train$", w)]
        assert named
        assert all(any(word in place for place in places) for word in named), where


def test_every_adapter_has_a_command():
    launched = [words[words.index("--adapter") + 1] for page, words in COMMANDS
                if page == "adapters/README.md" and words[:2] == ["topk", "run"]]  # fmt: skip
    assert {*launched} == {*ADAPTERS}


def test_the_table_of_rules():
    for row in table("patches/README.md", "rule"):
        name, fields = re.fullmatch(r"(\w+)\((.*)\)", row[0]).groups()
        rule = getattr(topk_plugin, name)
        assert fields.split(", ") == [field.name for field in dataclasses.fields(rule)]
        assert (row[2] == "refused") == ("place" in fields)
    place = re.search(r"`Place\((.*?)\)`", prose("patches/README.md"))[1]
    assert place.split(", ") == [field.name for field in dataclasses.fields(topk_plugin.Place)]
    named = {row[0].partition("(")[0] for row in table("patches/README.md", "rule")}
    assert named == {"Enclose", "Insert", "Replace", "Argument"}


def test_the_table_of_calls_in_a_patched_source():
    public = {name: value for name, value in vars(ScriptTopK).items() if inspect.isfunction(value)}
    calls = {
        f"topk.{name}({', '.join([*inspect.signature(value).parameters][1:])})"
        for name, value in public.items()
        if not name.startswith("_") or name == "__call__"
    }
    shown = {row[0] for row in table("patches/README.md", "call")}
    assert shown == {call.replace("topk.__call__", "topk") for call in calls}


# --- drawings and tables of folders -------------------------------------------------------------


def rooms_of(folder):
    """Modules and packages of a folder."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    return modules | {f"{path.parent.name}/" for path in folder.glob("*/*.py")}


@pytest.mark.parametrize("page", ["topk_plugin/README.md", REFERENCE])
def test_the_drawing_of_rooms(page):
    folder = PAGES[page].parent
    [drawing] = [b.text for b in blocks(page) if re.search(r"^    \w+/ ", b.text, re.MULTILINE)]
    drawn = re.findall(r"^    ([\w/]+)  +\S", drawing, re.MULTILINE)
    assert len(drawn) == len({*drawn})
    assert {*drawn} == rooms_of(folder)


def test_the_table_of_tests():
    rows = table("tests/README.md", "tests")
    named = {name.strip("/") for row in rows for name in row[0].split(", ")}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == named


def test_the_table_of_runs():
    rows = table(RUNS, "folder")
    shown = {name: row for row in rows for name in re.findall(r"\[([\w-]+)\]", row[0])}
    folders = {path.parent.name: path for path in PACKAGE.glob("reference/results/*/run.json")}
    assert {*shown} == {*folders}
    for name, (_, _, _, seeds, device) in shown.items():
        run = json.loads(folders[name].read_text())
        assert seeds.split()[-1] == str(run["seeds"]) or name == "table2-wide"
        assert ("CPU" in device) == (run["device"] == "cpu")


def test_the_table_of_costs():
    runs = {}
    for row in table(RUNS, "result"):
        if row[0].startswith("**"):
            continue
        experiment = EXPERIMENTS[row[0]]
        trainer = importlib.import_module(f"topk_plugin.reference.{experiment.trainer}")
        settings = trainer.Settings(**experiment.presets["paper"].settings)
        assert row[4] == str(settings.batch)
        runs[row[0]] = runs.get(row[0], 0) + int(row[2])
    for name, number in runs.items():
        assert number == len(EXPERIMENTS[name].arms) * EXPERIMENTS[name].presets["paper"].seeds


MEASURED = re.compile(r"-?\d[\d.]* ± \d[\d.]*|[+-]\d[\d.]* \[[^\]]*\]")


@pytest.mark.parametrize(
    "shown", [t for t in tables(REFERENCE) if MEASURED.search(str(t.rows))], ids=lambda t: t.heading
)
def test_numbers_are_those_of_a_report(shown):
    """What was measured stands in a report that is linked below the same heading."""
    reports = "".join(path.read_text() for path in linked_below(shown.heading))
    for row in shown.rows:
        for cell in row:
            assert all(number in reports for number in MEASURED.findall(cell)), cell


@pytest.mark.parametrize(
    "shown",
    [t for t in tables(REFERENCE) if re.search("paper", " ".join(t.head))],
    ids=lambda t: t.heading,
)
def test_the_papers_numbers_are_those_of_the_experiments(shown: Table):
    name = shown.heading.lower().replace(" ", "")
    start = next(i for i, cell in enumerate(shown.head) if "paper" in cell)
    found = sorted(float(cell) for row in shown.rows for cell in row[start:])
    arms = EXPERIMENTS[name].arms if name != "table2" else ("meg", "top-k+meg")
    paper = EXPERIMENTS[name].paper
    assert found == sorted(float(n) for (_, _, arm), n in paper.items() if arm in arms)


def linked_below(heading):
    section = re.split(rf"^## {heading}$", PAGES[REFERENCE].read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    found = re.findall(r"\]\((results/\S+?/report\.md)\)", section)
    assert found
    return [PAGES[REFERENCE].parent / name for name in found]


def test_the_cost_on_the_first_page():
    """The README's summary is of the table of measurements."""
    text = " ".join(prose("README.md").split())
    found = re.search(r"takes \[(\d+) to (\d+)% longer\]\S+, or (\d+)% less", text).groups()
    ratios = {}
    for row in table("tests/benchmarks/README.md", "way in"):
        ratios.setdefault(row[1], []).append(float(row[2].split()[0]))
    percents = {gate: [round(100 * (ratio - 1)) for ratio in of] for gate, of in ratios.items()}
    score = percents["score"]
    assert (min(score), max(score), -max(percents["learned"])) == tuple(map(int, found))


def test_topk_adapters_prints_them(capsys):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["adapters"]) == 0
    assert all(name in out.getvalue() for name in ADAPTERS)
