"""The bundled plugins in every way to gate: which rows they keep, by an object and by a flag."""

import json

import pytest
import torch
from launched import topk_run
from losses import BATCH, LOSSES, assert_same, best_rows, error, make_topk
from plugged import GAN, WAYS, KeepBest, by_hand, generator_step, settings, write

from topk_plugin import TopK


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bottom-k", "random-k", "top-k"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_select_of_the_bundled_plugins(way, name, k):
    chosen = [] if name == "top-k" else [name]
    topk = make_topk(k, plugins=chosen, **settings(way))
    generator, critic, rows = generator_step(way, topk)
    expected, of_critic, scores = by_hand(rows)
    assert len(set(rows)) == k
    if name != "random-k":
        assert rows == best_rows(scores, k, largest=name == "top-k")
    assert error(generator, expected) < 1e-12
    if way == "shielded":
        of_critic = by_hand(list(range(BATCH)))[1]
        assert_same(critic, of_critic)
    else:
        assert error(critic, of_critic) < 1e-12
    assert topk.report().dropped == BATCH - k


@pytest.mark.parametrize("way", WAYS)
def test_topk_select_gets_scores_of_which_higher_is_more_realistic(way):
    loss = LOSSES["wasserstein-low"]
    topk = make_topk(3, plugins=["bottom-k"], **settings(way, "low"))
    _, _, rows = generator_step(way, topk, loss)
    assert rows == best_rows(by_hand(rows)[2], 3, largest=True)


@pytest.mark.parametrize("scores", ["ties", "nan", "different"])
@pytest.mark.parametrize("name", ["bottom-k", "random-k"])
def test_topk_select_keeps_exactly_k(name, scores):
    values = {
        "ties": [1.0] * BATCH,
        "nan": [3.0, float("nan"), 1.0, float("nan"), 2.0, float("inf"), -1.0, 0.0],
        "different": [3.0, 9.0, 1.0, 4.0, 2.0, 5.0, -1.0, 0.0],
    }[scores]
    select = TopK(plugins=[name]).select
    for k in range(1, BATCH + 1):
        mask = select(torch.tensor(values), torch.tensor(float(k), dtype=torch.float64))
        assert int(mask.sum()) == k
        if name == "bottom-k":
            rows = best_rows(values, k, largest=False)
            assert mask.nonzero().flatten().tolist() == rows


def test_topk_select_random_k_favours_no_row():
    torch.manual_seed(0)
    select, draws = TopK(plugins=["random-k"]).select, 4000
    scores, k = torch.arange(float(BATCH)), torch.tensor(3.0)
    counts = sum(select(scores, k).double() for _ in range(draws))
    # five standard deviations of a binomial count
    share = 3 / BATCH
    assert (counts - draws * share).abs().max() < 5 * (draws * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mine", ["bottom-k", "random-k", "one row"])
def test_topk_select_at_k_of_the_whole_batch(way, mine):
    """Bit-identical to not being there, whatever the plugin says."""
    chosen = {"hooks": [KeepBest(1)]} if mine == "one row" else {"plugins": [mine]}
    topk = TopK(**chosen, **settings(way))
    generator, critic, rows = generator_step(way, topk)
    expected, of_critic, _ = by_hand(slice(None))
    assert rows == list(range(BATCH))
    assert_same(generator, expected)
    assert_same(critic, of_critic)


def test_topk_select_by_a_flag(tmp_path):
    """The worst are kept: their mean score is below that of the dropped rows."""
    write(tmp_path, "train.py", GAN)
    flags = ["--gamma", "0.5", "--nu", "0.5", "--log", "log.jsonl"]
    means = {}
    for name, more in {"top-k": [], "bottom-k": ["--plugins", "bottom-k"]}.items():
        done = topk_run(tmp_path, "train.py", critic="__main__:Critic", flags=[*flags, *more])
        assert done.status == 0, done.err
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["k"] for line in lines] == [8, 8, 4, 4]
        means[name] = [line["kept_score"] > line["dropped_score"] for line in lines[2:]]
    assert means == {"top-k": [True] * 2, "bottom-k": [False] * 2}
