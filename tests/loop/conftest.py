"""Where the resumed scripts run; a TopK, and what ends its epochs."""

import pytest
from resumed import with_gan

from topk_plugin import TopK
from topk_plugin.loop.epochs import EpochTracker


@pytest.fixture
def folder(tmp_path):
    return with_gan(tmp_path)


@pytest.fixture
def topk():
    return TopK(gamma=0.5, nu=0.1, direction="high")


@pytest.fixture
def tracker(topk):
    tracker = EpochTracker(topk)
    tracker.start()
    yield tracker
    tracker.stop()
