"""Who may import whom: each module only those above it, and nobody an adapter or a patch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import topk_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "topk_plugin"
ORDER = [
    "errors",
    "kinds",
    "monkeypatch",
    "strict_yaml",
    "core",
    "source",
    "config",
    "adapter",
    "hooks",
    "plugins",
    "topk",
    "upstream",
    "loop",
    "seams",
    "run",
    "check",
    "script",
    "demo",
    "reference",
    "cli",
]


def imported(path: Path) -> set[str]:
    """Names of this package's modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.split(".")[1] for name in names if name.startswith("topk_plugin.")}
    return inside & {*ORDER, "adapters", "patches", "reference"}


def test_every_module_has_its_place():
    found = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert found - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_up_only(name):
    path = PACKAGE / f"{name}.py"
    for file in [path] if path.exists() else (PACKAGE / name).rglob("*.py"):
        assert imported(file) <= set(ORDER[: ORDER.index(name) + 1])


FILES = sorted([*ROOT.glob("adapters/*.py"), *ROOT.glob("patches/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_adapters_and_patches_import_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("topk_plugin") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("topk_plugin"):
            if path.parent.name == "adapters" and node.module == f"topk_plugin.patches.{path.stem}":
                assert [alias.name for alias in node.names] == ["PATCH"]
            else:
                assert node.module == "topk_plugin"
                assert {alias.name for alias in node.names} <= set(topk_plugin.__all__)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("reference/**/*.py")), ids=lambda p: p.stem)
def test_reference_imports_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("topk_plugin.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "topk_plugin":
            assert {alias.name for alias in node.names} <= set(topk_plugin.__all__)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("topk_plugin."):
            assert node.module == "topk_plugin.errors" or ".reference" in node.module


def test_a_checkout_works_where_it_is_not_installed_and_finds_each_adapter_once():
    program = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import adapters.mimicry
from topk_plugin.upstream.known import adapters
print(*adapters())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {path.stem for path in ROOT.glob("adapters/*.py")} - {"__init__"}
    assert done.stdout.split() == sorted(files)


def test_a_topk_loads_no_adapter_and_no_patch():
    program = """
import sys
from topk_plugin import TopK
TopK()
rooms = ("topk_plugin.adapters", "topk_plugin.patches")
print(*(name for name in sys.modules if name.startswith(rooms)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
