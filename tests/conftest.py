"""Fixtures that several rooms share. One thread a process: the tests run side by side."""

import importlib
import os
import sys

import pytest
import torch
from stepping import Setup
from toy_upstream import forget, write

from topk_plugin import attach
from topk_plugin.loop import places
from topk_plugin.upstream.stubs import Stubs

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("PYTHONWARNINGS", "ignore:TypedStorage is deprecated")  # of torch 2.1 itself
torch.set_num_threads(1)


@pytest.fixture
def seeded():
    """The same random numbers in each test; before the fixtures that a test names."""
    torch.manual_seed(0)


@pytest.fixture
def nothing_compiled(monkeypatch):
    """As in a process in which no other test compiled anything: places are learned."""
    monkeypatch.setattr(places, "something_is_compiled", lambda: False)


@pytest.fixture
def gan():
    """A generator, a critic that is attached, and their optimizers."""
    setup = Setup()
    with attach(setup.D, setup.topk):
        yield setup


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of a checkout of the toy upstream, on sys.path."""
    write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    yield tmp_path
    left = [finder for finder in sys.meta_path if isinstance(finder, Stubs)]
    sys.meta_path[:] = [f for f in sys.meta_path if f in finders or "wrapt" in type(f).__module__]
    forget()
    assert left == []


@pytest.fixture
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that errors name the file as cfg.yaml
