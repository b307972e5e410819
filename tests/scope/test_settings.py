"""The setting in headers, reports and checkpoints, and what it does not go with."""

import pytest
import torch
from launched import topk_run
from short_scripts import script, with_gan

from topk_plugin import TopK
from topk_plugin.errors import ConfigError, ResumeMismatch


def test_a_checkpoint_of_another_scope_is_refused():
    state = TopK(scope="global").state_dict()
    with pytest.raises(ResumeMismatch, match="scope: 'global' in the checkpoint, 'rank' now"):
        TopK().load_state_dict(state)
    TopK(scope="global").load_state_dict(state)


def test_a_checkpoint_of_before_there_were_scopes_is_one_of_ranks():
    state = TopK().state_dict()
    del state["settings"]["scope"]
    TopK().load_state_dict(state)
    with pytest.raises(ResumeMismatch, match="scope"):
        TopK(scope="global").load_state_dict(state)


def test_a_group_whose_rows_do_not_compete():
    with pytest.raises(ConfigError, match=r'expected scope="global" with it'):
        TopK(group=object())


def test_the_vote_of_one_process_is_as_before():
    topk = TopK(scope="global")
    optimizer = torch.optim.SGD([w := torch.ones(3, requires_grad=True)], 0.1)
    for _ in range(101):
        topk(w * 2).sum().neg().backward()
        optimizer.step()
    assert topk.training.vote.known == 1
    assert topk.training.vote.how() == "by 100 of 100 votes"


APART = """
from gan import *

D, G = Critic(), make_generator()
optG = torch.optim.Adam(G.parameters(), 1e-2)
for _ in range(2):
    for x in loader:
        losses = [-D(G(torch.randn(4, 3))).mean() / 2 for _ in range(2)]
        sum(losses).backward()
        optG.step()
        optG.zero_grad()
"""


def test_the_header_says_that_micro_batches_are_ranked_apart(tmp_path):
    name = script(with_gan(tmp_path), APART)
    done = topk_run(tmp_path, name, flags=["--gamma", "0.5"])
    assert (
        "k 4 of 4 in each of 2 calls a step, ranked apart, decays x0.5 each epoch to 2" in done.err
    )


def test_and_that_they_compete():
    topk = TopK(gamma=0.5, nu=0.5)
    with topk.accumulate(steps=2):
        losses = [topk(torch.randn(4, requires_grad=True)).sum() for _ in range(2)]
        sum(losses).backward()
    assert topk.scope.kept_of(4, 4, 1.0, 2) == "k 4 of 4, 2 micro-batches that compete"
