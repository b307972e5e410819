"""One thread a process: the tests run side by side, and their networks are small."""

import os

import pytest
import torch
from stepping import Setup

from topk_plugin import attach

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)


@pytest.fixture
def seeded():
    """The same random numbers in each test; before the fixtures that a test names."""
    torch.manual_seed(0)


@pytest.fixture
def gan():
    """A generator, a critic that is attached, and their optimizers."""
    setup = Setup()
    with attach(setup.D, setup.topk):
        yield setup
