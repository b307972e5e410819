"""Networks that torch.compile gets hold of, with nothing named."""

import shutil
from pathlib import Path

import pytest
from launched import run
from short_scripts import SETTINGS, largest_difference, weights
from torches import compiles
from unnamed import equals_by_hand, with_loop

CASES = Path(__file__).parents[1] / "cases"


@compiles
@pytest.mark.parametrize("way", ["wrapper", "in place"])
def test_a_compiled_critic_is_found(way, tmp_path):
    for name in ("small.py", "compiled.py"):
        shutil.copy(CASES / name, tmp_path)
    ends = []
    for flags in (["--critic", "small:Judge"], []):
        done = run(tmp_path, ["run", *flags, *SETTINGS, "--", "compiled.py", way, "eager"])
        assert done.status == 0, done.err
        assert "12 generator steps gated" in done.err
        ends.append(weights(tmp_path))
    assert "ACTIVE: found critic small:Judge, direction high, k 16 of 16" in done.err
    assert largest_difference(*ends) == 0


def test_a_generator_and_a_critic_without_a_class_that_are_compiled(tmp_path):
    with_loop(
        tmp_path,
        """
        D = net(2, 1)
        opt_d = adam(D)
        bare = D, G
        D, G = (torch.compile(one, backend="eager") for one in bare)

        def step(x):
            critic_step(x)
            generator_step()

        passes(step)
        write(*bare)
        """,
    )
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic D (Sequential), direction high, k 8 of 8" in done.err
    assert "12 generator steps gated" in done.err
