"""Table 2's trainings against themselves, and the rows that they leave."""

import math
from dataclasses import replace

import pytest
import torch
from anomaly_runs import METHODS, SMALL, trained, training, weights
from losses import assert_same, error
from torch import nn

from topk_plugin.errors import ResumeMismatch
from topk_plugin.reference.anomaly import Training
from topk_plugin.reference.networks import mnist
from topk_plugin.reference.runs import Member


@pytest.mark.parametrize(
    ("build", "normal"),
    [
        (mnist.meg_generator, (nn.ConvTranspose2d,)),
        (lambda latent, dim: mnist.meg_energy(dim), (nn.Conv2d,)),
        (mnist.MegStatistics, (nn.Conv2d,)),
        (mnist.bigan_generator, (nn.ConvTranspose2d, nn.Linear)),
        (mnist.bigan_encoder, (nn.Conv2d, nn.Linear)),
        (mnist.BiganCritic, (nn.Conv2d, nn.Linear)),
    ],
)
def test_initial_weights(build, normal):
    """Those that are drawn anew have a standard deviation of 0.02."""
    torch.manual_seed(0)
    network = build(64, 64)
    drawn = [m for m in network.modules() if isinstance(m, normal)]
    assert drawn
    for layer in drawn:
        tolerance = 0.1 if layer.weight.numel() > 1000 else 0.4
        assert layer.weight.std().item() == pytest.approx(0.02, rel=tolerance)
        if nn.Linear in normal:
            assert not layer.bias.any()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        expected = 0.0 if nn.Linear in normal else 0.02
        assert norm.weight.std().item() == pytest.approx(expected, rel=0.6)


# --- one training is another ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_arms_are_the_same_while_k_is_the_batch(method):
    full = replace(SMALL, gamma=1.0)
    assert_same(weights(training(f"top-k+{method}")), weights(training(method)))
    assert_same(trained(f"top-k+{method}", full), trained(method, full))
    assert error(trained(f"top-k+{method}"), trained(method)) > 1e-6
    assert error(weights(training(method, seed=1)), weights(training(method))) > 1e-2


def test_dropped_rows_of_the_mutual_information():
    """They follow only where that is asked for, and then the generator alone feels it."""
    kept = training("top-k+meg")
    followed = training("top-k+meg", replace(SMALL, companions="follow"))
    for run in (kept, followed):
        run.advance(run.batches)
        assert run.topk.k(64) == 32
        run.method._generator_step(torch.ones(64, 6).double().cumsum(0) / 64, run.noise)
    mine, theirs = kept.method.networks, followed.method.networks
    assert_same([*mine["statistics"].parameters()], [*theirs["statistics"].parameters()])
    found, expected = ([p.grad for p in n["generator"].parameters()] for n in (mine, theirs))
    assert error(found, expected) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_the_same(tmp_path, method):
    """To the bit, also where it was cut within an epoch in which k is below the batch."""
    arm = f"top-k+{method}"
    whole = training(arm, dtype=torch.float32)
    whole.advance(whole.iterations)

    first = training(arm, dtype=torch.float32)
    cut = whole.batches + 1
    first.advance(cut)
    first.measure()
    assert first.iteration == cut
    torch.save(first.state_dict(), tmp_path / "state.pt")

    torch.rand(7)  # the global stream is nobody's
    second = training(arm, dtype=torch.float32)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(weights(second), weights(first))
    second.advance(10**6)
    assert_same(weights(second), weights(whole))
    assert error(weights(second), weights(first)) > 1e-6
    assert second.measure() == whole.measure()
    assert second.iteration == whole.iterations == 2 * whole.batches
    for name, optimizer in whole.method.optimizers.items():
        found = second.method.optimizers[name].state.values()
        for a, b in zip(found, optimizer.state.values(), strict=True):
            assert_same([a["exp_avg_sq"], a["step"]], [b["exp_avg_sq"], b["step"]])

    # and once more at the end, where nothing is left to train
    third = training(arm, dtype=torch.float32)
    third.load_state_dict(second.state_dict())
    assert third.measure() == whole.measure()


def test_a_checkpoint_of_another_training_is_refused():
    state = training("meg").state_dict()
    with pytest.raises(ResumeMismatch, match="member: .4, 'meg', 0. in the checkpoint, .4, 'meg'"):
        training("meg", seed=1).load_state_dict(state)
    with pytest.raises(ResumeMismatch, match="digest: 'other' in the checkpoint"):
        training("meg").load_state_dict(state | {"digest": "other"})
    state = training("top-k+meg").state_dict()
    with pytest.raises(ResumeMismatch, match="gamma"):
        training("top-k+meg", replace(SMALL, gamma=0.9)).load_state_dict(state)


def test_epochs_batches_and_data_order():
    """MEG's order is fixed and its last batch partial; BiGAN shuffles twice, whole batches only."""
    meg, bigan = training("meg"), training("bigan")
    assert len(meg.train) == len(bigan.train) == 164
    assert (meg.batches, meg.iterations) == (3, 6)
    assert (bigan.batches, bigan.iterations) == (3, 6)
    seen = {"meg": [], "bigan": []}
    for name, run in (("meg", meg), ("bigan", bigan)):
        run.method.step = lambda iteration, noise, *x, name=name: seen[name].append(x)
        run.advance(run.iterations)
    first, second = (torch.cat([x for (x,) in seen["meg"][i : i + 3]]) for i in (0, 3))
    assert [len(x) for (x,) in seen["meg"]] == [64, 64, 36] * 2
    expected = meg.pixels[meg.train] / 255.0 * 2 - 1
    torch.testing.assert_close(first, expected.double(), atol=1e-6, rtol=0)
    assert torch.equal(second, first)
    passes = [torch.cat([pair[i] for pair in seen["bigan"][epoch : epoch + 3]])
              for epoch in (0, 3) for i in (0, 1)]  # fmt: skip
    for x in passes:
        assert len(x.unique(dim=0)) == len(x) == 150
    assert len({tuple(x.flatten().tolist()) for x in passes}) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device_inside_a_step(tmp_path, method):
    arm, device = f"top-k+{method}", torch.device("cuda")
    run = Training(SMALL, [Member(4, arm, 0)], device)
    assert_same([w.cpu() for w in weights(run)], weights(training(arm, dtype=torch.float32)))
    run.advance(run.batches + 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.advance(run.iterations)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.save(run.state_dict(), tmp_path / "state.pt")
    again = Training(SMALL, [Member(4, arm, 0)], device)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(weights(again), weights(run))
    assert run.measure()[-1]["dropped"] > 0


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_run(method):
    run = training(f"top-k+{method}", dtype=torch.float32)
    run.advance(1)
    before = torch.get_rng_state()
    early = run.measure()
    assert torch.equal(torch.get_rng_state(), before)
    assert {row["kind"] for row in early} == {"score"}
    run.advance(run.iterations)
    last = run.measure()
    assert [row["kind"] for row in last] == ["score", "curve"] * 2 + ["topk"]
    for row in early + last:
        assert (row["cell"], row["arm"], row["seed"]) == (4, f"top-k+{method}", 0)
    names = [row["score"] for row in last if row["kind"] == "score"]
    expected = ["energy", "input-gradient norm"]
    assert names == (expected if method == "meg" else ["cross-entropy", "feature matching"])
    for row in early + last[:-1:2]:
        assert row["normal"] == 41
        assert row["chance"] == row["anomalous"] / (row["normal"] + row["anomalous"])
        assert 0 < row["average_precision"] < 1
        assert 0 < row["trapezoid"] < 1
        assert (row["split"], row["nonfinite"]) == ("disjoint", 0)
        assert row["data"] == "digits, 1,797 of 8x8, resized to 28x28"
        assert len(row["digest"]) == 64
    assert [row["epoch"] for row in early + last[:1]] == [0, 0, 2]
    proof = last[-1]
    steps, batch = (2, 64) if method == "meg" else (6, 50)
    assert proof["direction"] == ("low" if method == "meg" else "high")
    assert (proof["steps"], proof["epochs"], proof["last_k"]) == (steps, 2, batch // 2)
    assert (proof["rows"], proof["nonfinite"]) == (steps * batch, 0)
    assert proof["dropped"] == steps // 2 * (batch // 2)
    assert training(method).measure()[-1]["kind"] == "score"


@pytest.mark.parametrize("method", METHODS)
def test_nan_scores_give_no_area(method):
    run = training(method)
    name = "energy" if method == "meg" else "averaged encoder"
    with torch.no_grad():
        next(run.method.networks[name].parameters()).fill_(math.nan)
    run.iteration = run.iterations
    rows = run.measure()
    assert [row["kind"] for row in rows] == ["score", "score"]
    for row in rows:
        assert row["nonfinite"] == row["normal"] + row["anomalous"]
        assert row["average_precision"] is row["trapezoid"] is None
