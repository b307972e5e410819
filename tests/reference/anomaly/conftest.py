"""Few images, so that a training is short."""

import pytest
from anomaly_runs import SMALL

from topk_plugin.reference.anomaly import split
from topk_plugin.reference.anomaly import training as trainings


@pytest.fixture(autouse=True, scope="module")
def few_digits():
    """Every eighth digit, loaded once."""
    images = split.load(SMALL)
    images = images._replace(pixels=images.pixels[::8], labels=images.labels[::8])
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, trainings):
            patch.setattr(module, "load", lambda settings: images)
        yield
