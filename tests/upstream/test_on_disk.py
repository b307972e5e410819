"""`topk patch` on a toy repository: the diff, written, run, and undone."""

import codecs
import dataclasses
import difflib
import itertools
import json
import os
import stat
import subprocess

import launched
import pytest

from topk_plugin import Adapter, Enclose, Insert, Patch, Place, Replace
from topk_plugin.errors import ConfigError, SeamNotFound, UnsupportedUpstream
from topk_plugin.source.rules import IMPORT
from topk_plugin.source.text import Source, digest
from topk_plugin.upstream import on_disk
from topk_plugin.upstream.checkout import RECORD, find_checkout
from topk_plugin.upstream.on_disk import Change, Hunk, undone

MAIN = """\
import argparse

import networks
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
args = parser.parse_args()

torch.manual_seed(0)
generator, critic = networks.build()
of_generator = torch.optim.SGD(generator.parameters(), 0.1)
for epoch in range(args.epochs):
    for step in range(4):
        of_generator.zero_grad()
        loss = -critic(generator(torch.randn(8, 3))).mean()
        loss.backward()
        of_generator.step()
print(loss.item())
"""
NETWORKS = '''\
"""The networks."""

from torch import nn


def build():
    return nn.Linear(3, 2).cuda(), nn.Linear(2, 1).cuda()
'''
PATCH = Patch(
    commit="abc1234",
    topk=(
        Insert(Place("main.py", "", "networks.build"), "topk.keep_record(critic)"),
        Enclose(
            Place(
                "main.py",
                "",
                "critic",
                digest=digest("loss = -critic(generator(torch.randn(8, 3))).mean()"),
            )
        ),
        Insert(Place("main.py", "", "for", 2, 2), "topk.end_epoch()"),
    ),
    flags=(
        Insert(Place("main.py", "", "parser.parse_args"), "topk.add_arguments(parser)", "before"),
        Insert(Place("main.py", "", "parser.parse_args"), "topk.start(args, 'sngan')"),
    ),
    modern=(Replace("networks.py", "_.cuda()", "_.to('cpu')"), Replace("lost.py", "a", "b")),
)
ADAPTER = Adapter(
    name="toy",
    upstream="toy/gan",
    versions=("abc1234",),
    seam="source",
    wraps=(),
    epoch="a pass",
    counter="none",
    tested="here",
    patch=PATCH,
)


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "networks.py").write_text(NETWORKS)
    (tmp_path / "main.py").chmod(0o755)
    return tmp_path


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_diff_is_that_of_what_is_written(toy):
    before = files(toy)
    changes = on_disk.planned(ADAPTER, toy)
    assert files(toy) == before
    assert [change.name for change in changes] == ["main.py", "networks.py"]
    on_disk.write(ADAPTER, toy, changes)
    for change in changes:
        old, new = before[change.name].decode(), (toy / change.name).read_text()
        lines = difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), f"a/{change.name}", f"b/{change.name}"
        )
        assert change.diff() == "".join(lines)
    assert stat.S_IMODE((toy / "main.py").stat().st_mode) == 0o755
    text = (toy / "main.py").read_text()
    assert text.startswith(f"{IMPORT}\nimport argparse")
    assert "loss = -topk(critic(generator(torch.randn(8, 3)))).mean()" in text
    on_disk.revert(toy)
    assert files(toy) == before
    assert stat.S_IMODE((toy / "main.py").stat().st_mode) == 0o755


def test_without_the_modern_rules(toy):
    changes = on_disk.planned(ADAPTER, toy, modern=False)
    assert [change.name for change in changes] == ["main.py"]


def test_the_patched_script_has_a_flag_and_a_proof(toy):
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    off = launched.plain_run(toy, "main.py")
    assert (off.status, off.err) == (0, "")
    on = launched.plain_run(toy, "main.py", "--topk", "--topk-gamma", "0.5", "--topk-nu", "0.25")
    assert on.status == 0, on.err
    assert "direction high, k 8 of 8, decays x0.5 each epoch to 2" in on.err
    assert (
        "verdict: 12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended, last k 2 of 8"
        in on.err
    )
    assert on.out != off.out
    wrong = launched.plain_run(toy, "main.py", "--topk", "--topk-gamma", "2")
    assert wrong.status == 2
    assert wrong.err.startswith("topk: ConfigError: --topk-gamma: found 2")
    failing = launched.plain_run(toy, "main.py", "--topk", "--epochs", "0")
    assert "verdict: no optimizer stepped" in failing.err


@pytest.mark.parametrize("where", ["above", "below", "between"])
def test_edits_elsewhere_survive_a_revert(toy, where):
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    path = toy / "main.py"
    old, new = {
        "above": (IMPORT, f"# mine\n\n{IMPORT}"),
        "below": ("print(loss.item())", "print('end', loss.item())\n# mine"),
        "between": ("torch.manual_seed(0)", "torch.manual_seed(1)  # mine"),
    }[where]
    path.write_text(path.read_text().replace(old, new))
    assert on_disk.revert(toy) == ["main.py", "networks.py"]
    expected = MAIN.replace(old, new)
    if where == "above":
        expected = "# mine\n\n" + MAIN
    assert path.read_text() == expected
    assert not (toy / RECORD).exists()


def test_an_edited_line_of_the_patch_is_not_undone(toy):
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    path = toy / "main.py"
    path.write_text(path.read_text().replace("-topk(critic(", "-2 * topk(critic("))
    before = files(toy)
    with pytest.raises(UnsupportedUpstream, match=r"main.py: found no single place with the line"):
        on_disk.revert(toy)
    assert files(toy) == before


def test_a_file_that_was_restored_by_hand_is_no_obstacle(toy):
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    (toy / "main.py").write_text(MAIN)
    assert on_disk.recorded(toy) is not None
    assert on_disk.revert(toy) == ["networks.py"]
    assert (toy / "networks.py").read_text() == NETWORKS
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    (toy / "main.py").write_text(MAIN)
    (toy / "networks.py").write_text(NETWORKS)
    assert on_disk.recorded(toy) is None
    assert on_disk.revert(toy) == []
    with pytest.raises(ConfigError, match="nothing was patched"):
        on_disk.revert(toy)


def test_a_local_edit_at_the_seam_is_refused(toy):
    path = toy / "main.py"
    path.write_text(MAIN.replace("loss = -critic", "loss = -2 * critic"))
    before = files(toy)
    with pytest.raises(UnsupportedUpstream) as caught:
        on_disk.planned(ADAPTER, toy)
    assert str(caught.value).startswith(f"adapter toy: {path}, line 17: found critic in the module")
    assert "written for toy/gan abc1234, and nothing was changed" in str(caught.value)
    assert len(on_disk.planned(ADAPTER, toy, force=True)) == 2
    assert files(toy) == before


def test_a_patched_checkout_is_not_patched_again(toy):
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    with pytest.raises(UnsupportedUpstream, match="has put top-k into this file already"):
        on_disk.planned(ADAPTER, toy)


def test_all_files_are_written_or_none(toy, monkeypatch):
    before = files(toy)
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ConfigError, match="networks.py: No space left on device; nothing was cha"):
        on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    assert files(toy) == before


def test_where_no_checkout_is(tmp_path, toy):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        SeamNotFound, match="found no main.py in .*, expected a checkout of toy/gan"
    ):
        on_disk.checkout_of(ADAPTER, tmp_path / "empty")
    assert on_disk.checkout_of(ADAPTER, toy) == toy


def test_a_checkout_is_found_from_inside_and_not_beside(tmp_path, toy):
    adapter = dataclasses.replace(ADAPTER, patch=dataclasses.replace(PATCH, folder="toy"))
    (tmp_path / "deep" / "scripts").mkdir(parents=True)
    assert find_checkout(adapter, [tmp_path / "deep" / "scripts"]) == toy
    assert find_checkout(adapter, [tmp_path / "deep"], parents=False) is None
    beside = tmp_path / "beside"
    (beside / "toy").mkdir(parents=True)
    for name in on_disk.planned(ADAPTER, toy):
        (beside / "toy" / name.name).write_bytes(name.before.encode())
    assert find_checkout(adapter, [beside], parents=False) == beside / "toy"
    (beside / "mine").mkdir()
    assert find_checkout(adapter, [beside / "mine"]) == toy, "the folder above, not its toy"


def test_a_link_stays_one(tmp_path, toy):
    (toy / "main.py").rename(toy / "real.py")
    (toy / "main.py").symlink_to("real.py")
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    assert (toy / "main.py").is_symlink()
    assert IMPORT in (toy / "real.py").read_text()
    on_disk.revert(toy)
    assert (toy / "main.py").is_symlink()
    assert (toy / "real.py").read_text() == MAIN


def test_what_became_of_a_patch_is_said(toy):
    """Restored by hand as a whole, or the record is gone."""
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    (toy / "main.py").write_text(MAIN)
    assert on_disk.recorded(toy)["restored"] == ["main.py"]
    (toy / "networks.py").write_text(NETWORKS)
    assert on_disk.revert(toy) == []
    assert not (toy / RECORD).exists()
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    (toy / RECORD).unlink()
    with pytest.raises(UnsupportedUpstream, match="found top-k in the source, but no .topk_patch"):
        on_disk.revert(toy)


def test_a_broken_record_says_what_to_do(toy):
    (toy / RECORD).write_text("{")
    with pytest.raises(
        UnsupportedUpstream, match="found no record of a patch .* restore the files"
    ):
        on_disk.recorded(toy)


def test_a_record_holds_no_more_than_the_hunks(toy):
    changes = on_disk.planned(ADAPTER, toy)
    on_disk.write(ADAPTER, toy, changes)
    record = json.loads((toy / RECORD).read_text())
    assert record["adapter"] == "toy"
    assert {name: len(file["hunks"]) for name, file in record["files"].items()} == {
        "main.py": 6,
        "networks.py": 1,
    }


@pytest.mark.parametrize("context", ["a\n", ""])
def test_equal_hunks_are_told_apart_by_what_is_around_them(context):
    before = Source(f"{context}x = 1\nb\nx = 1\nc\n")
    after = Source(f"{context}x = 2\nb\nx = 2\nc\n")
    hunks = Change(None, "f", before, after).hunks()
    assert undone(after.text, hunks, "f") == before.text


def test_a_hunk_that_fits_twice_is_refused():
    hunk = Hunk([], [], ["x = 2\n"], [])
    with pytest.raises(UnsupportedUpstream, match="no single place"):
        undone("x = 2\nx = 2\n", [hunk], "f")


# --- bytes ----------------------------------------------------------------------------------------


def mixed(text: str) -> str:
    """Each line with another end than the one before."""
    ends = itertools.cycle(["\r\n", "\n", "\r"])
    return "".join(line + next(ends) for line in text.splitlines())


FORMS = {
    "LF": lambda text: text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "mixed": lambda text: mixed(text).encode(),
    "BOM": lambda text: text.encode("utf-8-sig"),
    "BOM and CRLF": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "tabs": lambda text: text.replace("    ", "\t").encode(),
    "tabs and CR": lambda text: text.replace("    ", "\t").replace("\n", "\r").encode(),
    "no end of the last line": lambda text: text.rstrip("\n").encode(),
    "another encoding": lambda text: f"# coding: latin-1\n# \xe9\xdf\n{text}".encode("latin-1"),
    "form feeds": lambda text: text.replace("\n\n", "\n\f\n").encode(),
    "blanks at line ends": lambda text: text.replace("\n", " \t\n").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_byte_comes_back(toy, form):
    """Whatever the line ends: other lines are as they were, the new ones run, and all is undone."""
    for path in (toy / "main.py", toy / "networks.py"):
        path.write_bytes(FORMS[form](path.read_text()))

    def python(folder) -> dict[str, bytes]:
        return {name: content for name, content in files(folder).items() if name.endswith(".py")}

    before = python(toy)
    changes = on_disk.planned(ADAPTER, toy)
    on_disk.write(ADAPTER, toy, changes)

    def lines(content: bytes) -> list[bytes]:
        return content.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)

    for change in changes:
        old, new = before[change.name], (toy / change.name).read_bytes()
        alike = difflib.SequenceMatcher(None, lines(old), lines(new), False).get_matching_blocks()
        assert sum(block.size for block in alike) == len(lines(old)) - 1, "the one that is replaced"
        assert new.startswith(codecs.BOM_UTF8) == ("BOM" in form)
        assert b"\r" not in new or b"\r" in old
    off = launched.plain_run(toy, "main.py")
    assert (off.status, off.err) == (0, "")
    on = launched.plain_run(toy, "main.py", "--topk", "--topk-gamma", "0.5", "--topk-nu", "0.25")
    assert "12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended" in on.err
    written = python(toy)
    assert on_disk.revert(toy) == ["main.py", "networks.py"]
    assert python(toy) == before
    on_disk.write(ADAPTER, toy, on_disk.planned(ADAPTER, toy))
    assert python(toy) == written
    on_disk.revert(toy)
    assert python(toy) == before


def git(folder, *words) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
    done = subprocess.run(
        ["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_git_worktree(toy, tmp_path_factory):
    (toy / "networks.py").write_bytes((toy / "networks.py").read_bytes().replace(b"\n", b"\r\n"))
    git(toy, "init", "-q")
    git(toy, "add", ".")
    git(toy, "commit", "-q", "-m", "all")
    tree = tmp_path_factory.mktemp("trees") / "tree"
    git(toy, "worktree", "add", "-q", str(tree))
    before = files(toy)
    on_disk.write(ADAPTER, tree, on_disk.planned(ADAPTER, tree))
    assert files(toy) == before
    assert git(toy, "status", "--short") == ""
    assert git(tree, "status", "--short").split() == [
        "M", "main.py", "M", "networks.py", "??", RECORD
    ]  # fmt: skip
    assert on_disk.revert(tree) == ["main.py", "networks.py"]
    assert git(tree, "status", "--short") == ""


def test_a_checkout_behind_a_link_and_a_linked_file_with_other_line_ends(toy, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "real.py").write_bytes(MAIN.replace("\n", "\r\n").encode())
    (toy / "main.py").unlink()
    (toy / "main.py").symlink_to(outside / "real.py")
    (outside / "link").symlink_to(toy)
    before = (outside / "real.py").read_bytes(), (toy / "networks.py").read_bytes()
    on_disk.write(ADAPTER, outside / "link", on_disk.planned(ADAPTER, outside / "link"))
    assert (toy / "main.py").is_symlink()
    assert (outside / "link").is_symlink()
    assert IMPORT.encode() in (outside / "real.py").read_bytes()
    assert b"\r\n" in (outside / "real.py").read_bytes()
    on_disk.revert(outside / "link")
    assert (toy / "main.py").is_symlink()
    assert ((outside / "real.py").read_bytes(), (toy / "networks.py").read_bytes()) == before
    assert not list(outside.glob("*draft")) + list(toy.glob("*draft"))


# --- the command ----------------------------------------------------------------------------------


def test_an_adapter_of_an_installed_package_has_no_rules(tmp_path):
    done = launched.run(tmp_path, ["patch", ".", "--adapter", "mimicry"])
    assert done.status == 2
    assert "has no source rules, since kwotsin/mimicry is used as an installed package" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patch", "nowhere", "--adapter", "sngan"], "found no folder 'nowhere'"),
        (["patch", ".", "--adapter", "sgnan"], "did you mean 'sngan'?"),
        (["patch", "."], "--adapter auto: found no repository with an adapter"),
        (["patch", ".", "--wriet"], "did you mean '--write'?"),
    ],
)
def test_mistakes_in_the_command_end_in_exit_status_2(tmp_path, arguments, message):
    done = launched.run(tmp_path, arguments)
    assert done.status == 2
    assert message in done.err
