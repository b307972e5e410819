"""Trainings of images that are resumed, and on two ranks."""

import io
import json
import math

import pytest
import torch
from image_runs import CPU, EPOCH, TINY, changed, of_thousand_classes, of_two, without_norms
from image_trainings import apart, rows_of, training, weights
from torch import multiprocessing

from topk_plugin.errors import ConfigError, ResumeMismatch
from topk_plugin.reference.images import Settings, Training
from topk_plugin.reference.runs import Request, load_checkpoint, ranks, reproduce


def resumed(state: dict, arm: str, settings: Settings = TINY) -> Training:
    content = io.BytesIO()
    torch.save(state, content)
    found = training(arm, settings, dtype=torch.float32)
    found.load_state_dict(torch.load(io.BytesIO(content.getvalue()), weights_only=True))
    return found


@pytest.mark.parametrize("arm", ["top-k+wgan", "both", "top-k+msgan", "top-k+icr-biggan"])
def test_a_resumed_training_ends_bit_identical(arm, short_epochs):
    settings = changed(average=0.9)
    expected = training(arm, settings, dtype=torch.float32)
    stopped = training(arm, settings, dtype=torch.float32)
    expected.advance(6)
    stopped.advance(3)
    found = resumed(stopped.state_dict(), arm, settings)
    assert not torch.equal(weights(found), weights(expected))
    found.advance(6)
    assert torch.equal(weights(found), weights(expected))
    assert found.measure() == expected.measure()


def test_rows_have_the_k_of_the_loss_that_is_gated(short_epochs):
    for arm, k in (("sagan", 8), ("top-k+sagan", 6), ("critic", 6), ("both", 6)):
        found = training(arm)
        found.advance(2)
        assert found.measure()[0]["k"] == k


def test_a_checkpoint_of_something_else_is_refused():
    state = training("dcgan").state_dict()
    for arm, change, text in (
        ("top-k+dcgan", {}, "member"),
        ("dcgan", {"layout": 1}, "layout: 1 in the checkpoint, 2 now"),
        ("dcgan", {"digest": "other"}, "digest: 'other' in the checkpoint"),
        ("dcgan", {"ranks": [{}, {}]}, "ranks: 2 in the checkpoint, 1 now"),
    ):
        with pytest.raises(ResumeMismatch, match=text):
            training(arm).load_state_dict(state | change)


# --- two ranks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    of_thousand_classes(folder / "images")
    multiprocessing.spawn(of_two, (folder, port), nprocs=2)
    return folder


@pytest.mark.slow
def test_two_ranks_train_log_once_and_resume(two_ranks):
    rows = rows_of(two_ranks / "undisturbed")
    assert [row["kind"] for row in rows] == ["loss", "loss", "score", "sheet", "topk"]
    proof = rows[-1]
    # 4 rows a rank; 5 critic steps an iteration and 2 batches an epoch
    kept = [2 * math.floor(max(0.8 ** (5 * (i + 1) // EPOCH), 0.5) * 4 + 1e-9) for i in range(4)]
    assert (proof["steps"], proof["dropped"]) == (4, sum(8 - k for k in kept))
    assert rows[2]["fake"] == 60
    assert json.loads((two_ranks / "told-0").read_text())[-1] == 4
    assert json.loads((two_ranks / "told-1").read_text()) == []
    both = [two_ranks / name for name in ("undisturbed", "resumed")]
    contents = [(job / "metrics.jsonl").read_bytes() for job in both]
    assert contents[0] == contents[1]
    saved = [load_checkpoint(job / "checkpoint.pt", CPU)["training"] for job in both]
    assert len(saved[0]["ranks"]) == 2
    for name, network in saved[0]["networks"].items():
        for key, value in network.items():
            assert torch.equal(value, saved[1]["networks"][name][key])


@pytest.mark.slow
def test_two_ranks_resume_within_an_epoch_of_a_thousand_classes_at_the_same_images(two_ranks):
    both = [two_ranks / f"imagenet-{name}" for name in ("undisturbed", "resumed")]
    contents = [(job / "metrics.jsonl").read_bytes() for job in both]
    assert contents[0] == contents[1]
    rows = rows_of(both[0])
    assert rows[0]["epoch"] == rows[-1]["epochs"] == 0  # within the first pass of 250 batches
    saved = [load_checkpoint(job / "checkpoint.pt", CPU)["training"] for job in both]
    critic = saved[0]["networks"]["critic"]
    assert critic["projection.parametrizations.weight.original"].shape[0] == 1_000
    for name, network in saved[0]["networks"].items():
        for key, value in network.items():
            assert torch.equal(value, saved[1]["networks"][name][key])
    seen = [json.loads((two_ranks / f"seen-{rank}").read_text()) for rank in range(2)]
    for rank in range(2):
        assert sorted(seen[rank]) == [*("resumed 3",), *(f"undisturbed {i}" for i in range(4))]
        assert seen[rank]["resumed 3"] == seen[rank]["undisturbed 3"]
    shown = [image for of_rank in seen for i in range(4) for image in of_rank[f"undisturbed {i}"]]
    assert len(shown) == len(set(shown)) == 4 * 8


@pytest.mark.slow
def test_two_ranks_go_where_one_goes(two_ranks, monkeypatch, short_epochs):
    without_norms(monkeypatch)
    alone = training("sngan", changed(iterations=4), dtype=torch.float32)
    alone.advance(4)
    found = load_checkpoint(two_ranks / "plain/checkpoint.pt", CPU)["training"]
    its = training("sngan", dtype=torch.float32)
    begun = weights(its).clone()
    its.generator.load_state_dict(found["networks"]["generator"])
    its.critic.load_state_dict(found["networks"]["critic"])
    assert apart(weights(its), weights(alone)) < 1e-3 * apart(begun, weights(alone))


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "found WORLD_SIZE=2 in the environment without RANK, LOCAL_RANK, MASTER_ADDR"),
        (
            {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "x"},
            "found 1 CUDA devices for local rank 1",
        ),
    ],
)
def test_an_environment_that_is_not_torchruns(environment, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in ({"WORLD_SIZE": "2"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text), ranks.group(torch.device("cuda")):
        pass


def test_other_experiments_do_not_run_under_torchrun(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun: found 2 processes, expected one"):
        reproduce(Request("table1", out=tmp_path / "out", device="cpu"))
