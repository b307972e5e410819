"""Modules that are edited as they are imported, while their files stay as they are."""

import importlib
import sys
import traceback

import pytest

from topk_plugin.source.in_memory import Rewriter, code_of
from topk_plugin.source.rules import Enclose, Insert, Place

MODULE = """\
import os


def train(D):
    for epoch in range(2):
        print(D(epoch))
    raise ValueError("here")
"""
RULES = (
    Enclose(Place("rewritten_module.py", "train", "D")),
    Insert(Place("rewritten_module.py", "train", "for"), "topk.end_epoch()", "last"),
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "rewritten_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("rewritten_module", None)
    assert not [finder for finder in sys.meta_path if isinstance(finder, Rewriter)]


def test_an_import_sees_the_edits_and_its_own_line_numbers(module):
    done = []
    rewriter = Rewriter(
        RULES, module, done=lambda path, rules: done.append((path.name, len(rules)))
    )
    rewriter.install()
    rewriter.install()
    try:
        found = importlib.import_module("rewritten_module")
    finally:
        rewriter.remove()
        rewriter.remove()
    assert done == [("rewritten_module.py", 2)]
    assert found.topk
    with pytest.raises(ValueError, match="here") as caught:
        found.train(lambda epoch: epoch)
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.lineno, frame.line) == (7, 'raise ValueError("here")')
    assert not list(module.rglob("*.pyc"))

    del sys.modules["rewritten_module"]
    importlib.invalidate_caches()
    assert not hasattr(importlib.import_module("rewritten_module"), "topk")


def test_bytecode_of_the_file_on_disk_is_not_used(module):
    importlib.import_module("rewritten_module")
    del sys.modules["rewritten_module"]
    rewriter = Rewriter(RULES, module)
    rewriter.install()
    try:
        assert hasattr(importlib.import_module("rewritten_module"), "topk")
    finally:
        rewriter.remove()


def test_a_module_of_that_name_elsewhere_is_left_alone(module, tmp_path_factory):
    rewriter = Rewriter(RULES, tmp_path_factory.mktemp("checkout"))
    rewriter.install()
    try:
        assert not hasattr(importlib.import_module("rewritten_module"), "topk")
        assert code_of(module / "rewritten_module.py") is None
    finally:
        rewriter.remove()


def test_import_hooks_see_a_rewritten_module(module):
    import wrapt

    told = []
    wrapt.register_post_import_hook(lambda found: told.append(found), "rewritten_module")
    rewriter = Rewriter(RULES, module)
    rewriter.install()
    try:
        found = importlib.import_module("rewritten_module")
    finally:
        rewriter.remove()
    assert told == [found]
    assert found.topk
