"""What the critic's own step, and the generator's loss, say beside what is gated."""

from pathlib import Path

import pytest
from launched import Done, topk_run

CASES = Path(__file__).parents[1] / "cases"
SLOWLY = ["--gamma", "0.9", "--nu", "0.5"]


def case(tmp_path: Path, name: str, *arguments: str, flags: list[str], critic: str) -> Done:
    return topk_run(tmp_path, str(CASES / f"{name}.py"), *arguments, flags=flags, critic=critic)


def test_a_loss_that_pulls_scores_down_to_its_target(tmp_path):
    """The least realistic rows were kept, and nothing was said; it is an error."""
    done = case(tmp_path, "two_sided", "4", flags=SLOWLY, critic="__main__:Critic")
    assert done.status == 3
    assert "DirectionUnknown" in done.err
    for part in ("asks for low scores", "critic's own steps say that high", "--direction high"):
        assert part in done.err
    assert "2 epochs ended" in done.err, "it is told as soon as the critic took a few steps"


@pytest.mark.parametrize("start", ["-4", "0"])
def test_a_loss_that_pulls_scores_up_to_its_target(tmp_path, start):
    done = case(tmp_path, "two_sided", start, flags=SLOWLY, critic="__main__:Critic")
    assert done.status == 0, done.err
    assert "120 generator steps gated" in done.err


@pytest.mark.parametrize("direction", ["high", "low"])
def test_a_direction_that_is_set_stands(tmp_path, direction):
    flags = [*SLOWLY, "--direction", direction]
    done = case(tmp_path, "two_sided", "4", flags=flags, critic="__main__:Critic")
    assert done.status == 0, done.err
    doubted = "direction low was set, but the critic's own steps say high" in done.err
    assert doubted == (direction == "low")


def test_a_critic_that_gives_real_samples_low_scores(tmp_path):
    """Its generator's votes waver at first, and end where the critic says."""
    flags = ["--gamma", "0.8", "--nu", "0.5"]
    done = case(tmp_path, "uniform_loss", flags=flags, critic="__main__:Critic")
    assert done.status == 0, done.err


def test_a_second_critic_is_named(tmp_path):
    """One of two critics was gated, and nothing was said; the other one is named."""
    flags = ["--gamma", "0.5", "--nu", "0.25"]
    done = case(tmp_path, "repeated_critic", flags=flags, critic="__main__:A")
    assert done.status == 0, done.err
    said = [line for line in done.err.splitlines() if "not gated" in line]
    assert len(said) == 1
    assert said[0].startswith("top-k verdict: not gated, though the generator's loss reads its sc")
    assert "__main__:B (8, 1)" in said[0]
    assert "--critic __main__:B" in said[0]


def test_critics_in_a_list_are_named_and_no_other_network(tmp_path):
    """Frozen in the generator's step, with an optimizer of their own."""
    done = case(tmp_path, "scales", flags=SLOWLY, critic="small:Judge")
    assert done.status == 0, done.err
    said = [line for line in done.err.splitlines() if "not gated" in line]
    assert len(said) == 1
    assert "scores: __main__:Coarse (16, 1); gate it too: --critic __main__:Coarse bes" in said[0]
