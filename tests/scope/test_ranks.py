"""Ranks whose rows compete, over gloo, against one process that has all rows."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from launched import plain_run
from torch import distributed

from topk_plugin.core.scope import Ranks

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("sizes", ["8,8", "7,3", "4,4,4", "1,5,2", "4,4,4,4", "1,6,2,5"])
def test_every_way_is_that_of_one_process(tmp_path, sizes):
    done = plain_run(tmp_path, str(HERE / "ways_of_ranks.py"), sizes)
    assert done.status == 0, done.err
    for way, found in json.loads((tmp_path / "ways.json").read_text()).items():
        assert found["global"] <= 1e-12, way
        if "bad" in way:  # it keeps none where the others have enough
            rows = [int(size) for size in sizes.split(",")]
            assert found["kept on rank 0"] == max(0, sum(rows) // 2 - sum(rows[1:]))
        assert found["rank"] > 1e-3, f"{way}: whose rows compete changes nothing here"


@pytest.mark.parametrize("what", ["dies", "never_comes", "is_an_epoch_behind"])
def test_a_rank_that_does_not_take_part_is_an_error_on_the_other(tmp_path, what):
    done = plain_run(tmp_path, str(HERE / "ranks_apart.py"), what)
    assert 'rank 0: scope="global": this rank waited for the scores' in done.out, done.err
    assert "the timeout of torch.distributed.init_process_group" in done.out


@pytest.mark.parametrize("what", ["votes", "batches_that_grow", "groups"])
def test_three_ranks(tmp_path, what):
    done = plain_run(tmp_path, str(HERE / "ranks_apart.py"), what)
    assert (done.status, done.out) == (0, "done\n"), done.err


def test_what_was_sent_is_not_left_to_the_thread_that_sends(monkeypatch):
    """It would need Python's lock to free it, as the group's end does: a run that never ends."""
    sent = []

    def collective(*tensors, group):
        for tensor in tensors:
            for one in tensor if isinstance(tensor, list) else [tensor]:
                sent.append(weakref.ref(one.zero_()))

    for name in ("all_gather", "all_reduce"):
        monkeypatch.setattr(distributed, name, collective)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda group: 0)
    ranks = Ranks()
    ranks.gather(torch.zeros(1), torch.zeros(()), 0.5)
    ranks.sum(torch.zeros(2))
    del ranks
    assert len(sent) == 4
    assert all(reference() is not None for reference in sent)
