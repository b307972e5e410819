"""What only a CUDA device can show: nothing waits for it, and graphs replay across epochs."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from topk_plugin import TopK, attach

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
