"""What every adapter has to pass, whichever plugin offers it.

An adapter's script, upstreams/NAME.py, trains with its upstream in float64 and writes weights.pt.
With `--hand` it trains twice: as ever (plain.pt), and with top-k written into it by hand, for gamma
0.75 and nu 0.5 (weights.pt). With `--other` it imports the upstream and trains something else.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import launched
import pytest
import torch
from launched import Done
from losses import error

import topk_plugin
from topk_plugin.hooks import adapters, plugin_manager

ROOT = Path(__file__).parents[1]
UPSTREAMS = Path(__file__).parent / "upstreams"
SETTINGS = ("--gamma", "0.75", "--nu", "0.5")
VERDICT = re.compile(
    r"^top-k verdict: (\d+) generator steps gated, (\d+) of (\d+) rows dropped, "
    r"(\d+) epochs ended, last k (\d+) of (\d+), 0 non-finite scores$",
    re.MULTILINE,
)


class Upstream:
    """An adapter's script in a folder of its own, to be run again and again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        shutil.copy(UPSTREAMS / f"{name}.py", folder / "train.py")

    def run(self, *arguments: str, flags: Sequence[str] = SETTINGS) -> Done:
        """``topk run --adapter NAME FLAGS -- train.py ARGUMENTS``."""
        command = ["run", "--adapter", self.name, *flags, "--", "train.py", *arguments]
        _, *others = needed(self.name)  # the upstream itself has to be imported under top-k
        done = launched.run(self.folder, command, preload=others)
        assert "Traceback" not in done.err, done.err
        return done

    def train(self, *arguments: str, flags: Sequence[str] = SETTINGS) -> list[torch.Tensor]:
        """The weights after a run that has to succeed; what it wrote besides is removed."""
        done = self.run(*arguments, flags=flags)
        assert done.status == 0, done.err
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        return self.weights("weights.pt")

    def weights(self, name: str) -> list[torch.Tensor]:
        saved = torch.load(self.folder / name, weights_only=True)
        return [value for state in saved for value in state.values()]

    def said(self) -> str:
        """What the latest run wrote to stderr."""
        return (self.folder / "stderr.txt").read_text()


def needed(name: str) -> list[str]:
    """Modules that an adapter's script needs, the upstream's own first."""
    first_line = (UPSTREAMS / f"{name}.py").read_text().partition("\n")[0]
    assert first_line.startswith("# needs: ")
    return first_line.split()[2:]


def needs(name: str) -> list[str]:
    """Those of them that are not here."""
    return [module for module in needed(name) if importlib.util.find_spec(module) is None]


def skip_without(name: str) -> None:
    """Skips where the upstream is not installed."""
    if missing := needs(name):
        pytest.skip(f"{', '.join(missing)} not installed")


def check_by_hand(upstream: Upstream, *arguments: str) -> re.Match[str]:
    """A run ends with the weights of top-k by hand, and not of no top-k; its verdict's numbers."""
    by_hand = upstream.train(*arguments, "--hand", flags=["--no-enabled"])
    assert "top-k" not in upstream.said()
    found = upstream.train(*arguments)
    assert error(found, by_hand) < 1e-9
    assert error(found, upstream.weights("plain.pt")) > 1e-6
    said = upstream.said()
    assert said.count("top-k ACTIVE: ") == 1
    verdict = VERDICT.search(said)
    assert verdict is not None, said
    return verdict


OFFERED = adapters(plugin_manager())


@pytest.mark.parametrize("name", OFFERED)
class TestContract:
    """Collected where it is imported."""

    def test_it_states_what_it_is(self, name):
        adapter = OFFERED[name]
        assert adapter.name == name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", adapter.upstream)
        assert adapter.versions
        assert adapter.epoch
        assert adapter.counter
        assert adapter.tested
        assert any(wrap.wrapper is not None for wrap in adapter.wraps)
        for wrap in adapter.wraps:
            ast.parse(f"def f{wrap.signature}: ...")
        if adapter.distribution:
            assert adapter.install
            assert f"{adapter.distribution}=={adapter.versions[-1]}" in adapter.install

    def test_its_file_is_short_and_imports_public_names_only(self, name):
        text = (ROOT / "adapters" / f"{name}.py").read_text()
        assert 20 <= len(text.splitlines()) <= 120
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= sys.stdlib_module_names
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                if node.module == "topk_plugin":
                    assert {alias.name for alias in node.names} <= set(topk_plugin.__all__)
                else:
                    assert node.module.partition(".")[0] in sys.stdlib_module_names

    def test_offering_it_imports_no_upstream(self, tmp_path, name):
        package = OFFERED[name].wraps[0].module.partition(".")[0]
        (tmp_path / "offered.py").write_text(
            "import sys\nfrom topk_plugin.hooks import adapters, plugin_manager\n"
            f"print({name!r} in adapters(plugin_manager()), {package!r} in sys.modules)\n"
        )
        assert launched.plain_run(tmp_path, "offered.py").out == "True False\n"

    def test_training_is_top_k_by_hand(self, tmp_path, name):
        skip_without(name)
        verdict = check_by_hand(Upstream(tmp_path, name))
        steps, dropped, rows, epochs, k, batch = map(int, verdict.groups())
        assert 0 < dropped < rows
        assert min(steps, epochs) > 1
        assert k == batch // 2

    def test_at_k_equal_to_b_it_is_not_there(self, tmp_path, name):
        skip_without(name)
        upstream = Upstream(tmp_path, name)
        found = upstream.train(flags=["--gamma", "1"])
        assert "rows dropped" in upstream.said()
        plain = upstream.train(flags=["--no-enabled"])
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))

    def test_a_loop_of_ones_own_has_no_effect(self, tmp_path, name):
        skip_without(name)
        done = Upstream(tmp_path, name).run("--other")
        assert done.status == 3
        assert f"NoEffectError: adapter {name}: 10 optimizer steps ran" in done.err
        assert "its loss was never called" in done.err

    def test_undo_leaves_the_very_functions(self, tmp_path, name):
        """Applied before the upstream is imported, and once more after it."""
        skip_without(name)
        Upstream(tmp_path, name)
        (tmp_path / "undo.py").write_text(UNDO)
        done = launched.plain_run(tmp_path, "undo.py", name)
        assert (done.status, done.err) == (0, "")
        assert done.out.endswith("the very functions\n")


UNDO = """
import functools, importlib, sys, types
from topk_plugin import TopK
from topk_plugin.hooks import adapters, plugin_manager
from topk_plugin.seams import CallSeam

adapter = adapters(plugin_manager())[sys.argv[1]]
seam = CallSeam(adapter, TopK(), roots=[])

def present():
    found = {}
    for wrap in adapter.wraps:
        *path, last = wrap.name.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(wrap.module))
        found[wrap] = vars(owner).get(last)
    return found

seam.apply()
wrapped = present()
seam.undo()
originals = present()
assert all(type(function) is types.FunctionType for function in originals.values())
seam.apply()
for wrap, function in present().items():
    assert (function is originals[wrap]) == (wrap.wrapper is None), wrap.name
    assert wrapped[wrap].__wrapped__ is originals[wrap] or wrap.wrapper is None
assert seam.log.verify() == []
seam.undo()
assert all(function is originals[wrap] for wrap, function in present().items())
for name in adapter.stubs:
    assert name not in sys.modules or sys.modules[name].__spec__.origin, name  # the real one
print("the very functions")
"""
