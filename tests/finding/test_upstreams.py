"""The repositories that have adapters, with only what they need to run: their critics are found."""

import pytest
from contract import ORIGINS, SETTINGS, Upstream, skip_without, verdict_of
from losses import error

STEPS = ["--every", "3"]
OF_ADAPTER = {  # where the adapter's epochs are others than passes of a DataLoader
    "lightweight_gan": STEPS,  # one that the end of training breaks off is none
    "meg": STEPS,
    "mimicry": STEPS,
    "stylegan2_pytorch": STEPS,
    "studiogan": [*STEPS, "--companions", "follow"],
}


# low is realistic; a critic that takes labels; gradients that are switched off and on
STAND_INS = ["meg", "studiogan", "biggan_pytorch"]
ONES = [one for one in ORIGINS if one.values[1] != "stand-in" or one.values[0] in STAND_INS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "origin"), ONES)
def test_training_with_nothing_named_is_what_the_adapter_does(name, origin, tmp_path):
    """Which is top-k by hand, as the adapters' contract shows."""
    skip_without(name, origin)
    upstream = Upstream(tmp_path, name, origin)
    flags = [*SETTINGS, *OF_ADAPTER.get(name, [])]
    named = upstream.train(flags=flags)
    counted = verdict_of(upstream).groups()
    found = upstream.train(flags=["--find", *flags])
    assert "top-k ACTIVE: found critic" in upstream.said()
    assert "ungated" not in upstream.said()
    assert verdict_of(upstream).groups() == counted
    assert error(found, named) < 1e-9
