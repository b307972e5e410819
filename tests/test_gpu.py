"""What only a CUDA device can show: nothing waits for it, and graphs replay across epochs."""

import contextlib
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from topk_plugin import TopK, attach
from topk_plugin.reference import images, mixture
from topk_plugin.reference.mixture import training as mixture_training
from topk_plugin.reference.runs import Member

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BATCH = 64


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    critic = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    return generator.double().cuda(), critic.double().cuda()


def literal(generator, critic, z, k) -> torch.Tensor:
    generator.zero_grad()
    softplus(-critic(generator(z)).flatten().topk(k).values).mean().backward()
    return torch.cat([p.grad.flatten() for p in generator.parameters()])


@pytest.mark.parametrize("way", ["line A", "marked", "shielded"])
def test_no_step_waits_for_the_device(way):
    generator, critic = networks()
    optimizer = torch.optim.Adam(generator.parameters(), capturable=True)
    topk = TopK(gamma=0.5, nu=0.5)
    z = torch.randn(BATCH, 4, dtype=torch.float64, device="cuda")

    def step():
        line = topk if way == "line A" else (lambda scores: scores)
        with topk.generator_step() if way == "marked" else contextlib.nullcontext():
            softplus(-line(critic(generator(z)))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with contextlib.nullcontext() if way == "line A" else attach(critic, topk):
        step()  # moves the state to the device
        topk.end_epoch()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert topk.report().dropped == 5 * BATCH // 2


def test_a_captured_graph_replays_for_every_k():
    generator, critic = networks()
    topk = TopK(gamma=0.8, nu=0.1).to("cuda")
    z = torch.randn(BATCH, 4, dtype=torch.float64, device="cuda")

    def backward():
        generator.zero_grad(set_to_none=False)
        critic.zero_grad(set_to_none=False)
        softplus(-topk(critic(generator(z)))).mean().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backward()
    kept = set()
    for _ in range(10):
        graph.replay()
        topk.step()
        found = torch.cat([p.grad.flatten() for p in generator.parameters()])
        copy = networks()
        for mine, its in zip(copy, (generator, critic), strict=True):
            mine.load_state_dict(its.state_dict())
        expected = literal(*copy, z, topk.k(BATCH))
        assert (found - expected).norm() <= 1e-12 * expected.norm()
        kept.add(topk.k(BATCH))
        topk.end_epoch()
    assert len(kept) > 5
    assert topk.steps == 10


# --- Table 1's trainer --------------------------------------------------------------------------

SETTINGS = mixture.Settings(
    iterations=230, batch=32, hidden=16, decay_every=10, gamma=0.8, nu=0.1, samples=100,
    learning_rate=1e-3,
)  # fmt: skip
MEMBERS = [
    Member(modes, arm, seed) for modes in (25, 64) for arm in ("gan", "top-k") for seed in (0, 1)
]


def mixtures(until: int) -> mixture.Training:
    training = mixture.Training(SETTINGS, MEMBERS, torch.device("cuda"), torch.float64)
    training.advance(until)
    return training


def same_members(a: mixture.Training, b: mixture.Training) -> list[bool]:
    """Which members have the same weights, to the last bit."""
    pairs = list(zip((*a.generator, *a.critic), (*b.generator, *b.critic), strict=True))
    return [all(torch.equal(x[i], y[i]) for x, y in pairs) for i in range(len(MEMBERS))]


def test_mixtures_in_a_graph_go_where_they_go_without(monkeypatch):
    graphed = mixtures(SETTINGS.iterations)
    assert graphed.graph is not None
    monkeypatch.setattr(mixture_training, "VOTING_STEPS", math.inf)
    eager = mixtures(SETTINGS.iterations)
    assert eager.graph is None
    for found, expected in zip(graphed.generator, eager.generator, strict=True):
        assert (found - expected).norm() <= 1e-12 * expected.norm()
    assert graphed.measure() == eager.measure()
    [row, *_] = [row for row in graphed.measure() if row["kind"] == "topk"]
    kept = [int(max(0.8 ** (i // 10), 0.1) * 32 + 1e-9) for i in range(SETTINGS.iterations)]
    assert (row["steps"], row["dropped"]) == (len(kept), sum(32 - k for k in kept))
    assert (row["direction"], row["last_k"]) == ("high", 3)


def test_mixtures_in_a_graph_do_not_wait_for_the_device():
    training = mixtures(105)
    assert training.graph is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.advance(125)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_mixture_that_fails_in_a_graph_fails_alone():
    expected, training = mixtures(SETTINGS.iterations), mixtures(150)
    with torch.no_grad():
        training.generator[0][5] = math.nan
    training.advance(SETTINGS.iterations)
    assert same_members(training, expected) == [i != 5 for i in range(len(MEMBERS))]
    rows = [row for row in training.measure() if row["kind"] == "score"]
    assert [row["nonfinite"] for row in rows] == [100 * (i == 5) for i in range(len(MEMBERS))]


def test_resumed_mixtures_end_bit_identical():
    expected, stopped = mixtures(SETTINGS.iterations), mixtures(133)
    content = io.BytesIO()
    torch.save(stopped.state_dict(), content)
    resumed = mixtures(0)
    resumed.load_state_dict(torch.load(io.BytesIO(content.getvalue()), weights_only=True))
    resumed.advance(SETTINGS.iterations)
    assert all(same_members(resumed, expected))
    assert not any(same_members(stopped, expected))
    assert resumed.measure() == expected.measure()


# --- Table 3's trainer --------------------------------------------------------------------------

IMAGES = images.Settings(
    dataset="digits", features="classifier", width=1 / 16, batch=32, gamma=0.5, iterations=130,
    samples=60, measure_every=10, score_every=130,
)  # fmt: skip


def trained(arm: str, until: int, **changes) -> images.Training:
    settings = images.Settings(**{**vars(IMAGES), **changes})
    training = images.Training(settings, [Member(32, arm, 0)], torch.device("cuda"), torch.float64)
    training.advance(until)
    return training


def same_images(a: images.Training, b: images.Training) -> bool:
    networks = (a.generator, b.generator), (a.critic, b.critic)
    return all(
        torch.equal(x, y)
        for one, other in networks
        for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "arm",
    ["top-k+dcgan", "top-k+wgan", "top-k+wgan-gp", "top-k+sagan", "both", "top-k+icr-biggan"],
)
def test_images_in_graphs_go_where_they_go_without(arm):
    graphed, eager = trained(arm, 130, graphs=True, average=0.9), trained(arm, 130, average=0.9)
    assert set(graphed.steps.captured) == {"_critic_step", "_generator_step"}
    assert not eager.steps.captured
    pairs = zip(graphed.averaged.parameters(), eager.averaged.parameters(), strict=True)
    for found, expected in pairs:
        # sums on a device come in any order
        assert (found - expected).norm() <= 1e-6 * expected.norm() + 1e-9
    rows, others = (
        [row for row in one.measure() if row["kind"] == "topk"] for one in (graphed, eager)
    )
    assert rows == others
    assert [row["of"] for row in rows] == (["generator", "critic"][: 1 + (arm == "both")])
    assert all(row["dropped"] > 0 for row in rows)


def test_images_do_not_wait_for_the_device():
    for changes in ({}, {"graphs": True}):
        training = trained("top-k+sngan", 105, **changes)
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.advance(109)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_resumed_images_in_graphs_go_on():
    expected, stopped = (trained("top-k+sngan", until, graphs=True) for until in (125, 110))
    content = io.BytesIO()
    torch.save(stopped.state_dict(), content)
    resumed = trained("top-k+sngan", 0, graphs=True)
    resumed.load_state_dict(torch.load(io.BytesIO(content.getvalue()), weights_only=True))
    assert same_images(resumed, stopped)
    resumed.advance(125)
    assert resumed.steps.captured
    pairs = zip(resumed.generator.parameters(), expected.generator.parameters(), strict=True)
    for found, its in pairs:
        assert (found - its).norm() <= 1e-6 * its.norm() + 1e-9


@pytest.mark.parametrize("changes", [{"bf16": True}, {"compile": True}])
def test_images_train_in_mixed_precision_and_compiled(changes):
    settings = images.Settings(**{**vars(IMAGES), **changes})
    training = images.Training(settings, [Member(32, "top-k+sagan", 0)], torch.device("cuda"))
    training.advance(3)
    row, *_ = training.measure()
    assert math.isfinite(row["critic"])


def test_sagan_at_128_pixels_and_batch_256_fits_in_parts():
    settings = images.Settings(dataset="digits", batch=256, accumulation=4, iterations=2)
    device = torch.device("cuda")
    training = images.Training(settings, [Member(128, "top-k+sagan-128", 0)], device)
    torch.cuda.reset_peak_memory_stats()
    training.advance(2)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"SAGAN-128, batch 256 in 4 parts: {peak:.1f} GiB at most")
    assert peak < 74
