"""Features of small images, and what a training of them needs."""

import pytest
from image_runs import attend_to_small_images, shorten_epochs


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Where features are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def attention_of_small_images(monkeypatch):
    attend_to_small_images(monkeypatch)


@pytest.fixture
def short_epochs(monkeypatch):
    shorten_epochs(monkeypatch)
