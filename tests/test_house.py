"""The rooms of the house: who may import whom, and nobody an adapter or a patch by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import topk_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "topk_plugin"

# each room, a module or a folder, and the rooms that it may import: only some that stand above it
ROOMS = {
    "errors": "",
    "compat": "",
    "streams": "",
    "kinds": "errors",
    "monkeypatch": "errors",
    "strict_yaml": "errors",
    "core": "streams compat errors monkeypatch",
    "source": "errors",
    "config": "errors kinds strict_yaml",
    "adapter": "source errors",
    "hooks": "adapter config core",
    "plugins": "hooks adapter core config streams compat errors",
    "topk": "plugins hooks core config streams errors",
    "upstream": "adapter source strict_yaml plugins errors",
    "loop": "topk hooks core monkeypatch kinds streams compat errors",
    "seams": "loop upstream topk hooks core source adapter monkeypatch kinds streams errors",
    "finding": "seams upstream loop topk hooks core streams monkeypatch compat errors",
    "run": "finding seams upstream loop source topk plugins hooks core adapter config streams "
    "compat errors",
    "check": "run seams core topk hooks monkeypatch streams compat errors",
    "script": "run seams config errors",
    "extras": "errors",
    "files": "errors",
    "pairs": "extras",
    "reference": "extras files pairs errors",
    "trial": "reference extras files pairs config streams errors",
    "demo": "trial streams errors",
    "commands": "trial reference extras config streams errors",
    "cli": "commands adapter run check script demo reference upstream config streams errors",
}
# the rooms of reference/, floor by floor: each imports only from the floors above its own
FLOORS = [
    "randomness settings models losses regularizers networks",
    "experiments",
    "data",
    "runs",
    "fid statistics training",
    "mixture anomaly images",
    "probe study",
    "report",
]


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def imported(path: Path) -> set[str]:
    """Full names of what a file imports of this package, wherever in it; ``package.name``, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            module = node.module or ""
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] == "topk_plugin"}


def rooms_of(names: set[str]) -> set[str]:
    inside = {name.split(".")[1] for name in names if "." in name}
    return inside & {*ROOMS, "adapters", "patches"}


def test_every_module_has_its_room():
    found = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert found - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_above_it(room):
    above = list(ROOMS)[: list(ROOMS).index(room)]
    allowed = set(ROOMS[room].split())
    assert allowed <= set(above)
    for path in files_of(room):
        assert rooms_of(imported(path)) <= allowed | {room}, path


def test_every_module_of_reference_has_its_room():
    folder = PACKAGE / "reference"
    found = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    assert found - {"__init__"} == set(" ".join(FLOORS).split())


@pytest.mark.parametrize("room", " ".join(FLOORS).split())
def test_a_room_of_reference_imports_only_what_stands_above_it(room):
    names = [floor.split() for floor in FLOORS]
    own = next(number for number, floor in enumerate(names) if room in floor)
    below = {name for floor in names[own:] for name in floor} - {room}
    for path in files_of(f"reference/{room}"):
        inside = {module for module in imported(path) if module.count(".") >= 2}
        assert not {module.split(".")[2] for module in inside if ".reference." in module} & below


def test_reports_know_the_modes_and_no_other_part_of_a_trainer():
    trainers = {"mixture", "anomaly", "images", "probe", "study"}
    for path in files_of("reference/report"):
        for module in imported(path):
            if module.count(".") >= 2 and module.split(".")[2] in trainers:
                assert module.startswith("topk_plugin.reference.mixture.modes"), path


SIZES = {"topk_plugin": 400, "adapters": 400, "patches": 400, "tests": 600}


@pytest.mark.parametrize("folder", SIZES)
def test_a_reader_can_hold_each_module_in_the_head(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= SIZES[folder], path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and folder != "tests":
                assert node.end_lineno - node.lineno < 250, f"{path}: {node.name}"


def test_every_folder_with_modules_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
    inside = {".".join(folder.parts) for folder in folders}
    assert set(settings["packages"]) == inside | set(settings["package-dir"])


FILES = sorted([*ROOT.glob("adapters/*.py"), *ROOT.glob("patches/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_adapters_and_patches_import_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("topk_plugin") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("topk_plugin"):
            if path.parent.name == "adapters" and node.module == f"topk_plugin.patches.{path.stem}":
                assert [alias.name for alias in node.names] == ["PATCH"]
            elif node.module != "topk_plugin.errors":
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
            plain = {f"topk_plugin.{name}" for name in ("errors", "extras", "files", "pairs")}
            assert node.module in plain or ".reference" in node.module


@pytest.mark.slow
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


@pytest.mark.slow
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
