"""The pages on adapters and patches, followed as written: their files, commands and what they say.

The adapter of the first page is run in both of the places that the page names: in a checkout of
this project, and offered by a plugin.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import launched
import tomllib
from pages import ROOT, blocks, files, prose, shell

ADAPTERS, PATCHES = "adapters/WRITING.md", "patches/README.md"


def written(folder: Path, *pages: str) -> Path:
    """The files of pages, in a folder."""
    for name, text in files(*pages).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def installed(folder: Path) -> Path:
    """What `pip install -e .` leaves of the page's pyproject.toml, beside its modules."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    about, offered = project["project"], project["project"]["entry-points"]
    for name in project["tool"]["setuptools"]["py-modules"]:
        assert (folder / f"{name}.py").is_file()
    info = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in offered.items()
        )
    )
    return folder


def section(page: str, heading: str) -> list[list[str]]:
    """The commands of a page below a heading, up to the next one of any depth."""
    start = (ROOT / page).read_text().split(f"# {heading}\n")[0].count("\n")
    texts = [b.text for b in blocks(page) if b.language == "sh" and b.line > start]
    lines = [line.split() for line in texts[0].splitlines()]
    assert all(words in shell(page) for words in lines)
    return lines


def labels(text: str) -> set[str]:
    """What `topk check` has a line on."""
    return {*re.findall(r"^([a-z][\w' -]+?)  +\S", text, re.MULTILINE)}


def shown(page: str, word: str) -> str:
    """The text block in which a page shows what a command prints."""
    [text] = [b.text for b in blocks(page) if b.language == "text" and word in b.text]
    return text


def follow(run, *which: str) -> None:
    """The commands of the first recipe end well, and print what the pages show."""
    for words in section(ADAPTERS, "Write an adapter"):
        assert words[0] == "topk"
        if words[1] not in which:
            continue
        done = run(words[1:])
        assert done.status == 0, done.err
        if words[1] == "adapters":
            assert "tiny_gan" in done.out
        elif words[1] == "run":
            assert done.err == shown(ADAPTERS, "top-k ACTIVE")
        else:
            assert labels(done.out) == labels(shown("topk_plugin/README.md", "top-k check of"))
            assert re.search(r"^result  +agrees$", done.out, re.MULTILINE)


def test_the_adapter_is_short():
    text = files(ADAPTERS)["tiny_gan.py"]
    assert len(text.splitlines()) <= 20
    ast.parse(text)
    assert "`result  agrees`" in prose(ADAPTERS)


def test_an_adapter_offered_by_a_plugin(tmp_path):
    folder = installed(written(tmp_path, ADAPTERS))
    assert ["pip", "install", "-e", "."] in shell(ADAPTERS)

    def run(words):
        return launched.run(folder / "tiny-gan", words, path=[str(folder)])

    follow(run, "adapters", "run", "check")
    done = run(["run", "--adapter", "auto", "--", "train.py", "--epochs", "1"])
    assert "top-k adapter auto: tiny_gan (somebody/tiny-gan), " in done.err


def test_an_adapter_in_a_checkout(tmp_path):
    """A checkout with one more file in adapters/, and not a line elsewhere."""
    folder = written(tmp_path, ADAPTERS)
    checkout = folder / "checkout"
    (checkout / "adapters").mkdir(parents=True)
    for name in ("topk_plugin", "patches"):
        (checkout / name).symlink_to(ROOT / name)
    for path in ROOT.glob("adapters/*.py"):
        (checkout / "adapters" / path.name).symlink_to(path)
    (folder / "tiny_gan.py").rename(checkout / "adapters" / "tiny_gan.py")
    environment = launched.ENVIRONMENT | {"PYTHONPATH": str(checkout)}

    def run(words):
        done = subprocess.run(
            [sys.executable, "-m", "topk_plugin", *words],
            cwd=folder / "tiny-gan",
            env=environment,
            capture_output=True,
            text=True,
        )
        return launched.Done(done.returncode, done.stdout, done.stderr)

    follow(run, "run")  # each is a process that imports torch


def test_a_patch(tmp_path):
    folder = installed(written(tmp_path, ADAPTERS, PATCHES))
    checkout = folder / "tiny-gan"
    digests, _, commands = [b for b in blocks(PATCHES) if b.language in ("sh", "text")][1:]
    done = subprocess.run(
        ["bash", "-ec", digests.text], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout == shown(PATCHES, "\n")
    assert all(digest in files(PATCHES)["tiny_patch.py"] for digest in done.stdout.split())

    original, said = (checkout / "train.py").read_text(), shown(ADAPTERS, "top-k ACTIVE")
    said = said.replace("by passes of a DataLoader over 64 samples", "by lines in the source")
    path = [str(folder)]
    for line in commands.text.splitlines():
        words = line.split()
        plain = words[0] == "python"
        done = launched.run(checkout, words[1:], plain=plain, path=path)
        assert done.status == 0, done.err
        if words[1:] == ["patch", ".", "--adapter", "tiny_gan"]:
            [diff] = [b.text for b in blocks(PATCHES) if b.language == "diff"]
            assert diff in done.out
            assert (checkout / "train.py").read_text() == original
        elif words[1] == "run":
            assert done.err == said
        elif words[1] == "check":
            assert re.search(r"^result  +agrees$", done.out, re.MULTILINE)
        elif plain:
            assert done.err == said.replace("tiny-gan 1.0)", "tiny-gan 1.0, patched)")
    assert (checkout / "train.py").read_text() == original
