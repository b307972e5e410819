"""The rules by which a module is a critic, on observations that are made by hand."""

import pytest
import torch

from topk_plugin import TopK
from topk_plugin.core.choice import BALLOT, DROPPED_SUM, KEPT, KEPT_SUM, NONFINITE, ROWS, Ranked
from topk_plugin.core.ranking import kept_rows
from topk_plugin.core.sorted_choice import Sorted, tally_of
from topk_plugin.finding import words
from topk_plugin.finding.pushes import Push, nothing_dropped
from topk_plugin.finding.rules import Output, Seen, heads_of, judge


def score(raised=16, lowered=0, kind="score", shape=(8, 1)):
    return Output(shape, kind, raised, lowered)


def critic(**changes):
    """What a plain critic shows after two generator steps."""
    shown = {"like": "m:Critic", "outputs": {"0": score()}, "steps": 2, "apart": True}
    return Seen(**shown | {"contrast": -2} | changes)


def taken(*modules, known=(), last=False):
    return [verdict.heads for verdict in judge(modules, known, last)]


def why(*modules, **rest):
    return [verdict.why for verdict in judge(modules, **rest)]


def test_what_scores_is_trained_apart_and_opposes_is_a_critic_at_once():
    assert taken(critic(steps=1)) == [("0",)]


def test_an_energy_is_lowered_by_the_generator_and_raised_by_its_own_steps():
    assert taken(critic(outputs={"0": score(0, 16)}, contrast=2)) == [("0",)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 0}, "no gradient of it reached the generator"),
        ({"helps": True}, "learns from the generator step's own gradient"),
        ({"apart": False}, "nothing trained it but the generator step's own gradient"),
        ({"contrast": 2}, "push generated samples the way the generator's steps do"),
        ({"trouble": "one Adam owns both"}, "one Adam owns both"),
        ({"outputs": {"0": score(9, 7)}}, "both ways (56% of them one way)"),
        ({"outputs": {"0": score(0, 0)}}, "the loss sent no gradient to it"),
        ({"outputs": {"0": score(kind="image")}}, "it returns an image"),
        (
            {"outputs": {"0": score(kind="image"), "1": score(9, 7, "numbers", (8, 2))}},
            "it returns an image",
        ),
        ({"outputs": {"0": score(146, 14, "numbers", (8, 10))}}, "both ways (91% of them one way)"),
    ],
)
def test_what_is_no_critic_and_why(changes, reason):
    (verdict,) = judge([critic(**changes)], last=True)
    assert not verdict.heads
    assert reason in verdict.why


def test_outputs_of_several_numbers_are_scores_where_all_are_pushed_one_way():
    several = {"0": score(160, 0, "numbers", (8, 10))}
    assert taken(critic(outputs=several)) == [("0",)]


def test_of_several_outputs_those_are_heads_that_are_pushed_one_way():
    outputs = {
        "validity": score(),
        "label": score(80, 80, "numbers", (8, 10)),
        "other": score(),
        "unread": score(0, 0),
    }
    assert taken(critic(outputs=outputs)) == [("validity", "other")]


@pytest.mark.parametrize(
    ("other", "heads"),
    [
        ((160, 0), ("0", "1")),
        ((150, 10), ("0",)),  # class logits, say
        ((0, 160), ("0",)),
    ],
)
def test_flattened_maps_beside_others_are_heads(other, heads):
    outputs = {"0": score(shape=(8, 1, 4)), "1": score(*other, "numbers", (8, 20))}
    assert taken(critic(outputs=outputs)) == [heads]


def test_flattened_maps_in_a_list_with_others_are_heads():
    outputs = {"x.0": score(15, 1), "x.1": score(76, 4, "numbers", (8, 10))}
    assert taken(critic(outputs=outputs)) == [("x.0", "x.1")]


def test_features_that_are_all_pushed_one_way_are_no_heads_beside_a_score():
    outputs = {"0": score(), "1": score(800, 0, "numbers", (8, 10, 10))}
    assert taken(critic(outputs=outputs)) == [("0",)]


def test_numbers_that_the_loss_reads_otherwise_are_no_heads():
    logits = Output((8, 10), "numbers", 160, 0, alike=False)
    (verdict,) = judge([critic(outputs={"0": logits})], last=True)
    assert "as it does class logits" in verdict.why
    column = score(0, 0, "numbers", (8, 2))
    column.take(Push(8, 0, -1.0, True, torch.tensor([False, True])))
    assert not heads_of(critic(outputs={"0": column}), 0.9)[0]
    column.take(Push(8, 0, -1.0, True, torch.tensor([True, False])))
    assert heads_of(critic(outputs={"0": column}), 0.9)[0] == ("0",)


def test_scores_that_features_stand_before_are_found_where_nothing_else_is():
    outputs = {
        f"{one}.{place}": score(*pushed, kind)
        for one in (0, 1)
        for place, kind, pushed in ((0, "numbers", (80, 70)), (1, "score", (16, 0)))
    }
    assert taken(critic(outputs=outputs, steps=2)) == [()]
    assert taken(critic(outputs=outputs, steps=3)) == [("0.1", "1.1")]
    assert taken(critic(outputs=outputs, steps=3, contrast=2)) == [()]
    other = critic(outputs=outputs | {"1.1": score(15, 1)}, steps=3)
    assert taken(other) == [("0.1",)]


def test_scores_that_are_pushed_in_opposite_directions_are_not_clear():
    (verdict,) = judge([critic(outputs={"a": score(), "b": score(0, 16)})])
    assert "a, b in opposite directions" in verdict.why


@pytest.mark.parametrize(("listed", "names"), [(True, ("0", "1")), (False, ("x.0", "x.1"))])
def test_scores_of_a_list_stand_together(listed, names):
    outputs = {names[0]: score(70, 2), names[1]: score(6, 2)}
    assert heads_of(critic(outputs=outputs, listed=listed), 0.9)[0] == names


def test_where_opposition_cannot_be_read_it_takes_three_steps():
    assert taken(critic(contrast=0)) == [()]
    assert taken(critic(contrast=0, steps=3)) == [("0",)]
    assert taken(critic(contrast=0, steps=1), last=True) == [("0",)]


def test_several_of_one_kind_are_taken_where_opposition_cannot_be_read():
    assert taken(critic(contrast=0, steps=3), critic(contrast=0, steps=3)) == [("0",), ("0",)]


def test_of_several_kinds_those_that_oppose_are_taken_alone():
    reward = critic(like="m:Reward", contrast=0, steps=9)
    assert taken(critic(), reward, last=True) == [("0",), ()]
    assert "do not show that they set generated samples against others" in why(critic(), reward)[1]
    assert taken(reward, known=["m:Critic"], last=True) == [()]


def test_of_several_kinds_none_is_taken_where_opposition_cannot_be_read():
    one, other = (critic(like=like, contrast=0, steps=9) for like in ("m:A", "m:B"))
    assert taken(one, other, last=True) == [(), ()]


def test_losses_that_seek_a_target_push_some_scores_the_other_way():
    seeking = {"0": score(20, 4)}
    assert taken(critic(outputs=seeking)) == [()]
    assert taken(critic(outputs=seeking, steps=3)) == [("0",)]
    assert taken(critic(outputs={"0": score(13, 11)}, steps=3), last=True) == [()]


@pytest.mark.parametrize("on_host", [True, False])
def test_of_a_step_that_went_ungated_no_row_counts_as_dropped(on_host):
    """It votes on the direction all the same."""
    topk, scores = TopK(gamma=0.5, nu=0.25), torch.tensor([3.0, 1.0, 2.0, torch.nan])
    topk.end_epoch()
    at, gradient = topk.training, torch.randn(4, 1)
    if on_host:
        ranked = Sorted(scores, at.progress, at.vote, mean=True)
    else:
        ranked = Ranked(scores, at.state(scores.device), True, kept_rows)
    chosen = ranked.choose([-torch.ones(4, 1)])
    whole = nothing_dropped(chosen)
    assert (chosen.kept.sum(), whole.kept.sum(), whole.batch) == (2, 4, 4)
    assert torch.equal(whole.keep(gradient), gradient)
    tally = tally_of([whole]) if on_host else whole.tally
    assert [tally[i] for i in (BALLOT, ROWS, KEPT, NONFINITE)] == [1, 4, 4, 1]
    assert tally[DROPPED_SUM] == 0
    assert torch.isnan(tally[KEPT_SUM])


def test_critics_of_one_class_are_named_once():
    said = words.lost("found critic m:Critic", 3, ["--critic m:Critic"] * 3)
    assert said.count("--critic m:Critic") == 1
