"""How many tensor operations top-k adds to a generator step; every one of them shows on a GPU."""

import pytest
from operations import added

VOTING, KNOWN = {"direction": "auto"}, {"direction": "high"}
LOOKED_AT = 60
"""Steps after which nothing else is looked at in the loop of an attached critic."""


@pytest.mark.parametrize("way", ["line", "marked"])
def test_a_score_gate_negates_sorts_multiplies_and_fills(way):
    """And every 64 steps what was counted is added up."""
    once, what = added(way, warm=LOOKED_AT, **KNOWN)
    assert dict(what) == {"neg": 1, "sort": 1, "mul": 1, "index_fill_": 1}
    assert once == 4
    assert added(way, warm=LOOKED_AT, steps=64, **KNOWN)[0] <= 4.5
    assert added(way, warm=LOOKED_AT, **KNOWN, reduction="sum")[1]["clone"] == 1  # no product


@pytest.mark.usefixtures("nothing_compiled")
def test_a_learned_place_runs_none_more_than_without_top_k():
    """What the gate adds two layers save, which form no gradient; and no network has fewer."""
    learned, what = added("shielded", "batch", warm=LOOKED_AT, **KNOWN)
    assert learned <= 0, what
    assert added("shielded", "batch", warm=LOOKED_AT, steps=64, **KNOWN)[0] <= 0.5
    assert added("shielded", "batch", warm=LOOKED_AT, **KNOWN, spare=False)[0] > 0


@pytest.mark.parametrize("way", ["line", "marked"])
def test_while_generator_steps_vote(way):
    """The critic's own steps, too, are looked at in the first ones."""
    found, _ = added(way, warm=20, steps=20, **VOTING)
    assert found <= 25
    ended, what = added(way, warm=101, **VOTING)
    assert ended == 4, what


@pytest.mark.parametrize("way", ["line", "marked", "shielded"])
def test_the_numbers(way):
    numbers = {
        "voting": added(way, warm=LOOKED_AT, steps=20, **VOTING)[0],
        "direction known": added(way, warm=LOOKED_AT, steps=64, **KNOWN)[0],
        "critic with BatchNorm": added(
            way, "batch", warm=LOOKED_AT, steps=64, spare=False, **KNOWN
        )[0],
    }
    print(f"operations added to a generator step, {way}: {numbers}")
    assert max(numbers.values()) <= 30
