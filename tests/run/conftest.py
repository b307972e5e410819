"""Where the short scripts run."""

import pytest
from short_scripts import with_gan


@pytest.fixture
def folder(tmp_path):
    return with_gan(tmp_path)
