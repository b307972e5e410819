"""Learned places under `topk run`: what it says of them, and what a resumed run repeats."""

import re

import pytest
import torch
from launched import topk_run
from resumed import CLEAN, GAN, equal, go, weights, write
from unnamed import equals_by_hand, with_loop

BATCHED = GAN.replace("nn.Linear(2, 8), nn.Tanh()", "nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh()")


@pytest.fixture
def batched(folder):
    """With a critic whose rows act on each other."""
    (folder / "gan.py").write_text(BATCHED)
    return folder


def spared(done) -> int:
    """Steps of which the verdict says that they spared the critic."""
    assert done.status == 0, done.err
    found = re.search(r"steps gated \((\d+) of them spared the critic's gradient\), ", done.err)
    return int(found[1]) if found else 0


def trained(folder, first, last, *flags):
    """How many steps of ``topk run`` were spared; and the weights that it ended with."""
    done, _ = go(folder, first, last, *flags)
    return spared(done), weights(folder, first, last)


def test_a_run_ends_as_one_that_learns_nothing(batched):
    write(batched, CLEAN)
    learned, ends = trained(batched, 0, 12)
    assert learned == 4 * 12 - 20
    plain, expected = trained(batched, 0, 12, "--no-spare")
    assert plain == 0
    assert equal(ends, expected)


@pytest.mark.parametrize("cut", [2, 5, 7])
def test_a_run_that_is_cut_while_it_learns_or_afterwards_is_the_whole_one(batched, cut):
    """The second part learns anew, and its steps have the same bits."""
    write(batched, CLEAN)
    whole, ends = trained(batched, 0, 14)
    assert whole == 4 * 14 - 20
    first, _ = trained(batched, 0, cut)
    assert first == max(0, 4 * cut - 20)
    second, resumed = trained(batched, cut, 14)
    assert second == 4 * (14 - cut) - 20
    assert equal(resumed, ends)


FAILS = CLEAN.replace(
    "for n in range(first, last):\n    epoch(G, D, optG, optD, n)",
    """
import gan
usual, failed = gan.step, []
count = 0

def step(G, D, optG, optD, x):
    global count
    count += 1
    zero, keeps = optD.zero_grad, count == 30 and not first
    if keeps: optD.zero_grad = lambda: None
    try:
        usual(G, D, optG, optD, x)
    except Exception as error:
        failed.append(error)
        print(type(error).__name__)
    optD.zero_grad = zero

gan.step = step
for n in range(first, last):
    epoch(G, D, optG, optD, n)
""",
)


def test_a_place_that_failed_is_not_trusted_in_another_process(batched):
    assert FAILS != CLEAN
    write(batched, FAILS)
    done, _ = go(batched, 0, 9)
    assert done.out.split() == ["GeneratorStepUnknown"]
    assert spared(done) == 9
    done, _ = go(batched, 9, 18)
    assert done.out == ""
    assert spared(done) == 0
    record = torch.load(batched / "c.pt", weights_only=True)["D"]._metadata[""]["topk_plugin"]
    assert len(record["distrusted"]) == 1


def test_a_run_that_is_not_caught_names_the_switch(batched):
    write(batched, FAILS.replace("failed.append(error)", "raise"))
    done, _ = go(batched, 0, 9)
    assert done.status != 0
    assert "--no-spare" in done.err
    assert re.search(r"a call from gan\.py:\d+, ", done.err)
    done, _ = go(batched, 0, 9, "--no-spare")
    assert (done.status, done.out) == (0, "")


def test_of_critics_that_were_found(tmp_path):
    with_loop(
        tmp_path,
        """
        D = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        opt_d = adam(D)

        def step(x):
            critic_step(x)
            generator_step()

        passes(step, 10)
        write(D, G)
        """,
    )
    assert spared(equals_by_hand(tmp_path)) >= 4 * 10 - 20 - 5


def test_by_an_environment_variable(batched):
    write(batched, CLEAN)
    flags = ("--gamma", "0.8", "--nu", "0.25")
    done = topk_run(batched, "train.py", "0", "8", flags=flags, env={"TOPK_SPARE": "no"})
    assert spared(done) == 0
    done = topk_run(batched, "train.py", "0", "8", flags=flags, env={"TOPK_SPARE": "yes"})
    assert spared(done) == 12
