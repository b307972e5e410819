"""Critics that are frozen in the generator's steps, where one optimizer owns both networks."""

import pytest
from unnamed import equals_by_hand, with_loop

STEP = """
def turn(one, on):
    one.requires_grad_(on)

def step(x):
    opt_d.zero_grad()
    turn(D, True), turn(G, not FROZEN)
    (softplus(-D(x)).mean() + softplus(D(fakes().detach())).mean()).backward()
    opt_d.step()
    opt_g.zero_grad()
    turn(D, False), turn(G, True)
    softplus(-keep(D(fakes()))).mean().backward()
    opt_g.step()

passes(step)
write(D, G)
"""
OPTIMIZERS = {
    "one": "opt_d = opt_g = adam(D, G)",
    "of a chain of both": "opt_g = adam(nn.Sequential(G, D))",
    "of a chain, and another": "E = net(2, 2); opt_e = adam(E); opt_g = adam(nn.Sequential(G, D))",
}


@pytest.mark.parametrize("optimizers", OPTIMIZERS)
@pytest.mark.parametrize("frozen", ["True", "False"])
def test_they_are_found(optimizers, frozen, tmp_path):
    with_loop(tmp_path, OPTIMIZERS[optimizers] + STEP.replace("FROZEN", frozen))
    done = equals_by_hand(tmp_path)
    assert "found critic gan:Critic, direction high" in done.err
    assert "verdict: 12 generator steps gated" in done.err


def test_what_is_frozen_for_good_is_none(tmp_path):
    """A reward, say, that the generator's optimizer was given, too."""
    text = """
R = net(2, 1).requires_grad_(False)
opt_g = adam(G, R)

def step(x):
    critic_step(x)
    generator_step(lambda fake: -R(fake).mean())

passes(step)
write(D, G)
"""
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "found critic gan:Critic, direction high" in done.err
