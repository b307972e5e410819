"""How many tensor operations top-k adds to a generator step; every one of them shows on a GPU."""

import pytest
from operations import added, capturing, in_a_graph
from torches import compiles

from topk_plugin.core.ranking import kept_rows
from topk_plugin.hooks import hookimpl

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


# --- where the device says what is kept ---------------------------------------------------------

FORM, COUNTED, VOTED = 30, 3, 3
"""At most this many, besides what an optimizer's step counts, and votes."""


class Best:
    """A selection that is top-k's own, and costs five."""

    @hookimpl
    def topk_select(self, scores, k):
        return kept_rows(scores, k)


def most(settings: dict[str, str]) -> int:
    return FORM + COUNTED + (VOTED if settings is VOTING else 0)


@pytest.mark.parametrize("settings", [VOTING, KNOWN], ids=["voting", "known"])
@pytest.mark.parametrize("way", ["line", "marked"])
def test_in_a_captured_graph(way, settings):
    with capturing():
        found, what = added(way, warm=LOOKED_AT, **settings)
    assert found <= most(settings), what
    assert "cat" in what  # it is the device's form


@compiles
@pytest.mark.parametrize("settings", [VOTING, KNOWN], ids=["voting", "known"])
def test_in_a_compiled_graph(settings):
    mine = in_a_graph(True, **settings)
    mine.subtract(in_a_graph(False))
    assert 10 < mine.total() <= FORM, mine


@pytest.mark.parametrize("settings", [VOTING, KNOWN], ids=["voting", "known"])
@pytest.mark.parametrize("way", ["line", "marked", "gather"])
def test_with_a_selection_by_a_plugin(way, settings):
    found, what = added(way, warm=LOOKED_AT, hooks=[Best()], **settings)
    assert found <= most(settings) + 5, what
    assert what["cat"] == 1


@pytest.mark.parametrize("settings", [VOTING, KNOWN], ids=["voting", "known"])
@pytest.mark.parametrize("way", ["companion", "marked companion", "follow", "gather"])
def test_outputs_that_follow_and_rows_that_are_gathered(way, settings):
    """They take the form of a plain step: what the host knows is not computed."""
    found, what = added(way, warm=LOOKED_AT, companions="follow", **settings)
    assert found <= (30 if settings is VOTING else 6), what
