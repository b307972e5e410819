"""Where the resumed scripts run."""

import pytest
from resumed import with_gan


@pytest.fixture
def folder(tmp_path):
    return with_gan(tmp_path)
