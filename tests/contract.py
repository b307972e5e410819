"""What every adapter has to pass, whichever plugin offers it.

An adapter's script, upstreams/NAME.py, trains with its upstream in float64 and writes weights.pt.
With `--hand` it does so with top-k written into it by hand, for gamma 0.75 and nu 0.5, and with
`--other` it imports the upstream and trains something else. Arguments that it does not know are the
upstream's own.

An upstream is what is installed here, or else a checkout: the genuine one, from the folder that
TOPK_UPSTREAMS names (OWNER+NAME in it), and a stand-in, standins/NAME, which has the same files,
names and signatures.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import launched
import pytest
import torch
from launched import Done
from losses import error

import topk_plugin
from topk_plugin.source.rules import IMPORT
from topk_plugin.upstream.checkout import RECORD, find_checkout
from topk_plugin.upstream.known import adapters

ROOT = Path(__file__).parents[1]
UPSTREAMS = Path(__file__).parent / "upstreams"
STANDINS = Path(__file__).parent / "standins"
SETTINGS = ("--gamma", "0.75", "--nu", "0.5")
VERDICT = re.compile(
    r"^top-k verdict: (\d+) generator steps? gated, (\d+) of (\d+) rows dropped, "
    r"(\d+) epochs? ended, last k (\d+) of (\d+), 0 non-finite scores(?:; epochs counted .+)?$",
    re.MULTILINE,
)
OFFERED = adapters()


class Upstream:
    """An upstream in a folder of its own with the adapter's script, to be run again and again.

    Args:
        origin: "installed", "stand-in" or "genuine".
    """

    def __init__(self, folder: Path, name: str, origin: str = "installed") -> None:
        self.name, self.origin, self.adapter = name, origin, OFFERED[name]
        self.checkout = self.folder = folder / "upstream"
        self.script = "train.py" if origin == "installed" else "topk_driver.py"
        if origin == "installed":
            self.checkout.mkdir()
        else:
            source = checkout(name) if origin == "genuine" else STANDINS / name
            assert source is not None
            ignored = shutil.ignore_patterns(".git", "*.gif", "*.jpg", "*.npz", "docs")
            shutil.copytree(source, self.checkout, ignore=ignored)
            base = find_checkout(self.adapter, [self.checkout], parents=False)
            assert base is not None, f"{source}: no files of the adapter's rules"
            self.folder = base
            shutil.copy(UPSTREAMS.parent / "drive.py", self.folder / "topk_drive.py")
        shutil.copy(UPSTREAMS / f"{name}.py", self.folder / self.script)
        # the digests are those of the genuine files
        self.force = ["--force"] if origin == "stand-in" else []

    def run(self, *arguments: str, flags: Sequence[str] = SETTINGS, command: str = "run") -> Done:
        """``topk COMMAND --adapter NAME FLAGS -- train.py ARGUMENTS``."""
        if self.adapter.seam == "source":
            flags = [*self.force, *flags]
        words = [command, "--adapter", self.name, *flags, "--", self.script, *arguments]
        done = launched.run(self.folder, words, preload=preloaded())
        assert "Traceback" not in done.err, done.err
        return done

    def train(self, *arguments: str, flags: Sequence[str] = SETTINGS) -> list[torch.Tensor]:
        """The weights after a run that has to succeed; what it wrote besides is removed."""
        before = set(self.folder.iterdir())
        done = self.run(*arguments, flags=flags)
        assert done.status == 0, done.err
        for path in set(self.folder.iterdir()) - before:
            if path.is_dir():
                shutil.rmtree(path)
        return self.weights()

    def logged(self, *arguments: str, flags: Sequence[str] = SETTINGS) -> list[tuple[int, ...]]:
        """Epoch, batch and k of each generator step of a run that has to succeed."""
        done = self.run(*arguments, flags=[*flags, "--log", "log.jsonl"])
        assert done.status == 0, done.err
        lines = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
        return [(line["epoch"], line["batch"], line["k"]) for line in lines]

    def weights(self) -> list[torch.Tensor]:
        saved = torch.load(self.folder / "weights.pt", weights_only=True)
        return [value for state in saved for value in state.values() if value.is_floating_point()]

    def said(self) -> str:
        """What the latest run wrote to stderr."""
        return (self.folder / "stderr.txt").read_text()

    def patch(self, *flags: str) -> Done:
        """``topk patch CHECKOUT --adapter NAME FLAGS``."""
        words = ["patch", str(self.checkout), "--adapter", self.name, *self.force, *flags]
        return launched.run(self.folder, words)

    def files(self) -> dict[str, bytes]:
        """The Python files of the checkout."""
        return {str(path): path.read_bytes() for path in self.checkout.rglob("*.py")}


def checkout(name: str) -> Path | None:
    """The genuine checkout of an adapter's repository, if it is here."""
    folder = os.environ.get("TOPK_UPSTREAMS")
    path = Path(folder or "", OFFERED[name].upstream.replace("/", "+"))
    return path if folder and path.is_dir() else None


def _origins() -> Iterator[Any]:
    """Each adapter with each of its upstreams."""
    for name, adapter in OFFERED.items():
        if adapter.patch is None:
            yield pytest.param(name, "installed", id=name)
        else:
            yield pytest.param(name, "stand-in", id=f"{name}-stand-in")
            yield pytest.param(name, "genuine", id=f"{name}-genuine", marks=pytest.mark.upstream)


ORIGINS = list(_origins())


def needed(name: str, origin: str = "installed") -> list[str]:
    """Modules that an adapter's script needs, an installed upstream's own first.

    The script's first line has them: "# needs: these; genuine: and those with a genuine checkout".
    """
    first_line = (UPSTREAMS / f"{name}.py").read_text().partition("\n")[0]
    assert first_line.startswith("# needs: ")
    always, _, genuine = first_line.removeprefix("# needs: ").partition("; genuine: ")
    return always.split() + (genuine.split() if origin == "genuine" else [])


@functools.cache
def preloaded() -> list[str]:
    """What scripts need and is here, of all of them, for one server; an upstream comes later."""
    modules = {
        module
        for name in OFFERED
        for module in needed(name)[OFFERED[name].patch is None :]
        if importlib.util.find_spec(module)
    }
    return sorted(modules)


def needs(name: str, origin: str = "installed") -> list[str]:
    """Those of them that are not here."""
    return [module for module in needed(name, origin) if importlib.util.find_spec(module) is None]


def skip_without(name: str, origin: str = "installed") -> None:
    """Skips where the upstream is not installed."""
    if origin == "genuine" and checkout(name) is None:
        where = f"{OFFERED[name].upstream.replace('/', '+')} in the folder TOPK_UPSTREAMS"
        pytest.skip(f"no checkout {where}")
    if missing := needs(name, origin):
        pytest.skip(f"{', '.join(missing)} not installed")


def check_by_hand(upstream: Upstream, *arguments: str) -> re.Match[str]:
    """A run ends with the weights of top-k by hand, and not of no top-k; its verdict's numbers."""
    by_hand = upstream.train(*arguments, "--hand", flags=["--no-enabled"])
    assert "top-k" not in upstream.said()
    plain = upstream.train(*arguments, flags=["--no-enabled"])
    found = upstream.train(*arguments)
    assert error(found, by_hand) < 1e-9
    assert error(found, plain) > 1e-6
    return verdict_of(upstream)


def verdict_of(upstream: Upstream) -> re.Match[str]:
    """The one header and the one verdict of the latest run."""
    said = upstream.said()
    assert said.count("top-k ACTIVE: ") == 1, said
    verdict = VERDICT.search(said)
    assert verdict is not None, said
    return verdict


@pytest.mark.parametrize("name", OFFERED)
class TestDeclaration:
    """Collected where it is imported."""

    def test_it_states_what_it_is(self, name):
        adapter = OFFERED[name]
        assert adapter.name == name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", adapter.upstream)
        assert adapter.versions
        assert adapter.epoch
        assert adapter.counter
        assert adapter.tested
        assert any(wrap.wrapper is not None for wrap in adapter.wraps) == (adapter.seam == "call")
        for wrap in adapter.wraps:
            ast.parse(f"def f{wrap.signature}: ...")
        if adapter.distribution:
            assert adapter.install
            assert f"{adapter.distribution}=={adapter.versions[-1]}" in adapter.install
        if adapter.seam == "source":
            assert adapter.patch is not None
        if adapter.patch is not None:
            assert adapter.patch.commit in adapter.versions
            assert adapter.patch.flags
            assert adapter.patch.digests
            assert all(place.place.digest for place in adapter.patch.topk_places)

    def test_its_files_are_short_and_import_public_names_only(self, name):
        files = [ROOT / "adapters" / f"{name}.py", ROOT / "patches" / f"{name}.py"]
        for file in files[: 1 + (OFFERED[name].patch is not None)]:
            text = file.read_text()
            assert 10 <= len(text.splitlines()) <= 120
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    assert {alias.name for alias in node.names} <= sys.stdlib_module_names
                elif isinstance(node, ast.ImportFrom):
                    assert node.module is not None
                    if node.module == "topk_plugin":
                        assert {alias.name for alias in node.names} <= set(topk_plugin.__all__)
                    elif node.module not in ("topk_plugin.errors", f"topk_plugin.patches.{name}"):
                        assert node.module.partition(".")[0] in sys.stdlib_module_names

    def test_offering_it_imports_no_upstream(self, tmp_path, name):
        modules = {wrap.module.partition(".")[0] for wrap in OFFERED[name].wraps}
        (tmp_path / "offered.py").write_text(
            "import sys\nfrom topk_plugin.upstream.known import adapters\n"
            f"print({name!r} in adapters(), {modules!r} & sys.modules.keys())\n"
        )
        assert launched.plain_run(tmp_path, "offered.py").out == "True set()\n"


@pytest.mark.parametrize(("name", "origin"), ORIGINS)
class TestContract:
    """Collected where it is imported."""

    @pytest.fixture
    def upstream(self, tmp_path, name, origin):
        skip_without(name, origin)
        return Upstream(tmp_path, name, origin)

    def test_training_is_top_k_by_hand(self, upstream):
        verdict = check_by_hand(upstream)
        steps, dropped, rows, epochs, k, batch = map(int, verdict.groups())
        assert 0 < dropped < rows
        assert min(steps, epochs) > 1
        assert k == max(1, batch // 2)
        of = upstream.adapter
        version = of.versions[-1]
        known = {"installed": f"{of.distribution} {version}", "genuine": f"{of.upstream} {version}"}
        said = known.get(upstream.origin, f"{of.upstream} of unknown version")
        assert f"top-k ACTIVE: {upstream.name} ({said}), direction " in upstream.said()
        assert ("top-k note: " in upstream.said()) == (upstream.origin == "stand-in")

    def test_at_k_equal_to_b_it_is_not_there(self, upstream):
        found = upstream.train(flags=["--gamma", "1"])
        assert "rows dropped" in upstream.said()
        plain = upstream.train(flags=["--no-enabled"])
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))

    def test_gradients_are_those_of_the_formula(self, upstream):
        done = upstream.run(command="check", flags=[*SETTINGS, "--steps", "2"])
        assert done.status == 0, done.out + done.err
        assert re.search(
            r"^gradient +relative error .* at most (\d\.\de-(09|1\d)|0\.0e\+00) ", done.out, re.M
        )
        assert re.search(r"^rows +those of a plain sort", done.out, re.MULTILINE), done.out
        assert re.search(r"^result +agrees$", done.out, re.MULTILINE)
        direction = upstream.adapter.direction
        assert "the adapter says" not in done.out, direction

    def test_a_loop_of_ones_own_has_no_effect(self, upstream):
        done = upstream.run("--other")
        assert done.status == 3
        assert re.search(rf"^topk: \w+: adapter {upstream.name}: ", done.err, re.MULTILINE)
        assert "10 optimizer steps ran" in done.err
        if upstream.adapter.seam == "call":
            assert "its loss was never called" in done.err

    def test_a_renamed_function_is_refused_before_training(self, upstream):
        if upstream.origin == "installed":
            pytest.skip("shown on a copy of the package")  # test_mimicry
        adapter = upstream.adapter
        if adapter.seam == "call":
            wrap = next(wrap for wrap in adapter.wraps if wrap.wrapper is not None)
            file, called = f"{wrap.module}.py", wrap.name
        else:
            place = adapter.patch.topk_places[0].place
            file, called = place.file, place.at
        path = upstream.folder / file
        path.write_text(re.sub(rf"\b{called.rpartition('.')[2]}\b", "renamed", path.read_text()))
        done = upstream.run()
        assert done.status == 3
        assert "UnsupportedUpstream" in done.err
        assert called in done.err
        assert str(path) in done.err
        assert not (upstream.folder / "weights.pt").exists()

    def test_undo_leaves_everything_as_it_was(self, upstream, name):
        """Applied before the upstream is imported, and once more after it."""
        (upstream.folder / "undo.py").write_text(UNDO)
        done = launched.plain_run(upstream.folder, "undo.py", name, *upstream.force)
        assert (done.status, done.err) == (0, "")
        assert done.out.endswith("the very functions\n")

    def test_auto_recognises_it(self, upstream, name):
        done = launched.run(
            upstream.folder,
            ["run", "--adapter", "auto", *SETTINGS, "--", upstream.script, "--other"],
            preload=preloaded(),
        )
        if upstream.origin == "stand-in":
            assert done.status == 2
            assert "--adapter auto: found no repository with an adapter" in done.err
            assert "Nearly: " in done.err
        else:
            assert f"top-k adapter auto: {name} ({upstream.adapter.upstream}), " in done.err


@pytest.mark.parametrize(
    ("name", "origin"), [case for case in ORIGINS if case.values[1] != "installed"]
)
class TestPatch:
    """`topk patch`, for every adapter that has rules. Collected where it is imported."""

    @pytest.fixture
    def upstream(self, tmp_path, name, origin):
        skip_without(name, origin)
        return Upstream(tmp_path, name, origin)

    def test_written_run_and_undone(self, upstream):
        originals = upstream.files()
        by_hand = upstream.train("--hand", flags=["--no-enabled"])
        plain = upstream.train(flags=["--no-enabled"])
        diff = upstream.patch()
        assert diff.status == 0, diff.err
        assert IMPORT in diff.out
        assert upstream.files() == originals

        assert upstream.patch("--write").status == 0
        written = upstream.files()
        changed = {Path(path).name for path in originals if written[path] != originals[path]}
        assert changed == {
            Path(name).name for name in re.findall(r"^\+\+\+ b/(.*)$", diff.out, re.M)
        }
        again = upstream.patch("--write")
        assert again.status == 0
        assert "nothing was changed" in again.err
        assert upstream.files() == written

        def train(*flags: str) -> list[torch.Tensor]:
            done = launched.run(
                upstream.folder,
                [upstream.script, *flags],
                plain=True,
                preload=preloaded(),
            )
            assert done.status == 0, done.err
            assert "Traceback" not in done.err, done.err
            return upstream.weights()

        assert all(torch.equal(a, b) for a, b in zip(train(), plain, strict=True))
        assert "top-k" not in upstream.said()
        found = train("--topk", "--topk-gamma", "0.75", "--topk-nu", "0.5")
        assert error(found, by_hand) < 1e-9
        assert int(verdict_of(upstream)[4]) > 1
        assert ", patched), direction" in upstream.said()

        refused = upstream.run()
        assert refused.status == 3
        assert "`topk patch` has put top-k into this file already" in refused.err
        assert upstream.patch("--revert").status == 0
        assert upstream.files() == originals
        assert not list(upstream.checkout.rglob(RECORD))
        assert not list(upstream.checkout.rglob("*.topk-draft"))
        assert upstream.patch("--revert").status == 2

    def test_a_local_edit_at_the_seam_is_refused(self, upstream):
        if upstream.origin == "stand-in":
            pytest.skip("its digests are those of the genuine files")
        place = upstream.adapter.patch.topk_places[0].place
        path = upstream.folder / place.file
        path.write_text(path.read_text().replace(f"{place.at}(", f"{place.at}(*[], "))
        edited = upstream.files()
        for arguments in ((), ("--write",)):
            done = upstream.patch(*arguments)
            assert done.status == 3
            assert str(path) in done.err
            assert "digest" in done.err
        assert upstream.files() == edited

    def test_no_line_of_it_is_in_this_project(self, upstream):
        if upstream.origin == "stand-in":
            pytest.skip("a stand-in is this project's own")
        theirs = {
            line.strip()
            for path in upstream.checkout.rglob("*.py")
            if not path.name.startswith("topk_")
            for line in path.read_text(errors="replace").splitlines()
            if len(line.strip()) > 40 and not re.match(r"\s*(from|import)\b", line)
        }
        ours = {
            path: shared
            for folder in ("topk_plugin", "adapters", "patches", "tests")
            for path in (ROOT / folder).rglob("*.py")
            if (shared := {line.strip() for line in path.read_text().splitlines()} & theirs)
        }
        common = in_libraries(frozenset().union(*ours.values()))
        copied = {path: shared - common for path, shared in ours.items() if shared - common}
        assert not copied


def in_libraries(lines: Set[str]) -> set[str]:
    """Those of ``lines`` that stand in Python's library or in torch: any program may have them."""
    library = Path(sysconfig.get_path("stdlib"))
    found: set[str] = set()
    for folder in (library, Path(torch.__file__).parent):
        for path in folder.rglob("*.py"):
            if found == lines:
                return found
            if folder != library or "site-packages" not in path.parts:
                text = path.read_text(errors="replace")
                found |= {line for line in lines - found if line in text} & {
                    line.strip() for line in text.splitlines()
                }
    return found


UNDO = """
import functools, importlib, sys, types
from pathlib import Path
from typing import Any
from topk_plugin import TopK
from topk_plugin.upstream.known import adapters
from topk_plugin.plugins.manager import plugin_manager
from topk_plugin.source.in_memory import Rewriter, code_of
from topk_plugin.seams.source import SourceSeam, active_seam
from topk_plugin.seams.call import CallSeam

adapter = adapters()[sys.argv[1]]
roots = [Path.cwd()] if adapter.patch else []
kind = SourceSeam if adapter.seam == "source" else CallSeam
seam = kind(adapter, TopK(), roots=roots, force="--force" in sys.argv)

def present():
    found = {}
    for wrap in adapter.wraps:
        *path, last = wrap.name.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(wrap.module))
        found[wrap] = vars(owner).get(last)
    return found

def rewriters():
    return [finder for finder in sys.meta_path if isinstance(finder, Rewriter)]

seam.apply()
wrapped = present()
if adapter.seam == "source":
    files = {rule.place.file for rule in adapter.patch.topk_places}
    assert active_seam() is seam and len(rewriters()) == 1
    assert all(code_of(Path.cwd() / file) for file in files)
seam.undo()
assert not rewriters() and active_seam() is None
originals = present()
assert all(type(function) is types.FunctionType for function in originals.values())
seam.apply()
for wrap, function in present().items():
    assert (function is originals[wrap]) == (wrap.wrapper is None), wrap.name
    assert wrap.wrapper is None or wrapped[wrap].__wrapped__ is originals[wrap]
assert seam.log.verify() == []
seam.undo()
assert all(function is originals[wrap] for wrap, function in present().items())
assert not rewriters() and active_seam() is None
for name in adapter.stubs:
    assert name not in sys.modules or sys.modules[name].__spec__.origin, name  # the real one
print("the very functions")
"""
