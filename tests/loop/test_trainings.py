"""What one generator's optimizer does is one training, with its own k = B, counts and vote."""

import gc
import json
import textwrap

import pytest
import torch
import torch.nn.functional as F
from launched import topk_run
from losses import BATCH, Critic, make_generator, noise
from torch.utils.data import DataLoader

from topk_plugin import TopK, attach

pytestmark = pytest.mark.usefixtures("seeded")

SGD = torch.optim.SGD
HALF = BATCH // 2


def loader():
    return DataLoader(torch.randn(2 * BATCH, 1), batch_size=BATCH)


def train(G, D, opt_G, epochs=2):
    """Two generator steps an epoch."""
    batches = loader()
    for _ in range(epochs):
        for _ in batches:
            opt_G.zero_grad()
            F.softplus(-D(G(noise()))).mean().backward()
            opt_G.step()
    return batches


def ks(topk):
    """Of each training: its steps, epochs, and last k."""
    reports = [topk.report(training) for training in topk.trainings.all]
    return [(report.steps, report.epochs, report.last_k) for report in reports]


def test_a_loop_over_seeds_with_one_topk():
    """Before, the second one began at the k that the first one ended with."""
    topk = TopK(gamma=0.5, nu=0.25)
    for _ in range(3):
        G, D = make_generator(), Critic()
        opt_G = SGD(G.parameters(), 0.1)
        with attach(D, topk):
            train(G, D, opt_G)
        topk.end_epoch()
    assert ks(topk) == [(4, 1, BATCH)] * 3


def test_networks_that_are_gone_leave_nothing_behind():
    """A parameter may get the id of one that is gone, of the critic's for instance."""
    topk = TopK(gamma=0.5, nu=0.25)
    for _ in range(8):
        D, G = Critic(), make_generator()
        opts = [SGD(D.parameters(), 0.1), SGD(G.parameters(), 0.1)]
        with attach(D, topk):
            for _ in range(3):
                for optimizer in opts:  # fakes are not detached in the critic's step
                    for each in opts:
                        each.zero_grad()
                    F.softplus(-D(G(noise()))).mean().backward()
                    optimizer.step()
        del D, G, opts, optimizer, each
        gc.collect()
    assert ks(topk) == [(3, 0, BATCH)] * 8
    assert topk.ledger.optimized == topk.ledger.of_critic == set()


def test_folds_whose_networks_are_all_built_before():
    topk = TopK(gamma=0.5, nu=0.25)
    folds = [(make_generator(), Critic()) for _ in range(3)]
    optimizers = [SGD(G.parameters(), 0.1) for G, _ in folds]
    for (G, D), opt_G in zip(folds, optimizers, strict=True):
        with attach(D, topk):
            train(G, D, opt_G)
        topk.end_epoch()
    assert ks(topk) == [(4, 1, BATCH)] * 3


def test_a_new_critic_for_the_same_optimizer_goes_on():
    topk, G = TopK(gamma=0.5, nu=0.25), make_generator()
    opt_G = SGD(G.parameters(), 0.1)
    for _ in range(2):
        D = Critic()
        SGD(D.parameters(), 0.1)
        with attach(D, topk):
            train(G, D, opt_G)
        topk.end_epoch()
    assert ks(topk) == [(8, 2, HALF)]


def test_a_new_critic_and_a_new_optimizer_for_the_same_generator():
    """Progressive growing that builds both anew for each resolution."""
    topk, G = TopK(gamma=0.5, nu=0.25), make_generator()
    for _ in range(2):
        D, opt_G = Critic(), SGD(G.parameters(), 0.1)
        with attach(D, topk):
            train(G, D, opt_G)
        topk.end_epoch()
    assert ks(topk) == [(4, 1, BATCH)] * 2


@pytest.mark.parametrize("of_critic_too", [False, True])
def test_an_optimizer_that_takes_another_ones_place(of_critic_too):
    """For another learning rate, say; the networks stay."""
    topk, G, D = TopK(gamma=0.5, nu=0.25), make_generator(), Critic()
    with attach(D, topk):
        for rate in (0.1, 0.05):
            opt_D = SGD(D.parameters(), rate) if of_critic_too else None
            train(G, D, SGD(G.parameters(), rate))
            del opt_D
            topk.end_epoch()
    assert ks(topk) == [(8, 2, HALF)]


def test_two_generators_with_a_step_each():
    topk = TopK(gamma=0.5, nu=0.25)
    pairs = [(make_generator(), Critic()) for _ in range(2)]
    optimizers = [SGD(G.parameters(), 0.1) for G, _ in pairs]
    data = loader()
    with attach(pairs[0][1], topk, loader=data), attach(pairs[1][1], topk):
        for _ in range(2):
            for _ in data:
                for (G, D), optimizer in zip(pairs, optimizers, strict=True):
                    optimizer.zero_grad()
                    F.softplus(-D(G(noise()))).mean().backward()
                    optimizer.step()
    assert ks(topk) == [(4, 2, HALF)] * 2


def test_two_optimizers_of_one_step_are_one_training():
    topk, D = TopK(gamma=0.5, nu=0.25), Critic()
    halves = [make_generator(), make_generator()]
    optimizers = [SGD(half.parameters(), 0.1) for half in halves]
    with attach(D, topk):
        for _ in range(3):
            sum(F.softplus(-D(half(noise()))).mean() for half in halves).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            topk.end_epoch()
    assert [report[:2] for report in ks(topk)] == [(3, 3)]
    assert topk.report().rows == 6 * BATCH
    assert topk.report().last_k == BATCH // 4


def test_a_second_training_goes_on_from_its_own_checkpoint():
    G, D = make_generator(), Critic()
    first = TopK(gamma=0.5, nu=0.25)
    with attach(D, first):
        train(G, D, SGD(G.parameters(), 0.1))
        first.end_epoch()
        saved = D.state_dict()

    topk = TopK(gamma=0.5, nu=0.25)
    with attach(D, topk):
        train(G, D, SGD(G.parameters(), 0.1))
        G, other = make_generator(), Critic()
        with attach(other, topk):
            other.load_state_dict(saved)
            train(G, other, SGD(G.parameters(), 0.1))
    assert ks(topk) == [(4, 0, BATCH), (8, 1, HALF)]


SEEDS = """
    import torch
    from gan import *

    for seed in range(2):
        torch.manual_seed(seed)
        train(Critic())
"""


def test_each_training_has_its_header_and_its_line_in_the_verdict(tmp_path):
    (tmp_path / "gan.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            from torch.utils.data import DataLoader

            class Critic(nn.Linear):
                def __init__(self):
                    super().__init__(2, 1)

            def train(D):
                G = nn.Linear(3, 2)
                g, d = (torch.optim.SGD(net.parameters(), 0.1) for net in (G, D))
                for _ in range(3):
                    for x in DataLoader(torch.randn(16, 2), batch_size=4):
                        fake = G(torch.randn(4, 3))
                        d.zero_grad()
                        (D(fake.detach()) - D(x)).mean().backward()
                        d.step()
                        g.zero_grad()
                        (-D(fake)).mean().backward()
                        g.step()
            """
        )
    )
    (tmp_path / "seeds.py").write_text(textwrap.dedent(SEEDS))
    flags = ("--gamma", "0.5", "--nu", "0.25", "--log", "log.jsonl")
    done = topk_run(tmp_path, "seeds.py", flags=flags)
    assert done.status == 0
    for text in (
        "ACTIVE: critic gan:Critic, direction high, k 4 of 4",
        "ACTIVE, training 2: critic gan:Critic, direction high, k 4 of 4",
        "verdict, training 1: 12 generator steps gated, 20 of 48 rows dropped, 3 epochs ended",
        "verdict, training 2: 12 generator steps gated, 20 of 48 rows dropped, 3 epochs ended",
    ):
        assert text in done.err
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["k"] for line in lines] == ([4] * 4 + [2] * 4 + [1] * 4) * 2
    assert [line.get("training", 1) for line in lines] == [1] * 12 + [2] * 12
