"""Where the audited scripts run."""

from pathlib import Path

import pytest
from checked import with_gan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_gan(tmp_path)
