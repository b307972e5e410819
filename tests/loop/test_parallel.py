"""Critics wrapped for several devices or ranks, and mixed precision. Everything runs on the CPU."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import softplus
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torches import scalers

from topk_plugin import TopK, attach
from topk_plugin.errors import SeamNotFound
from topk_plugin.seams.critic import CriticSeam, parse_critics

BATCH = 16


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    critic = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2))
    critic.append(nn.Linear(16, 1))
    return generator.double(), critic.double()


def half() -> TopK:
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    return topk


def gradients(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def expected(generator, critic, z) -> tuple[torch.Tensor, torch.Tensor]:
    """The literal top-k gradient of the generator, and the critic's gradient without top-k."""
    generator, critic = copy.deepcopy(generator), copy.deepcopy(critic)
    softplus(-critic(generator(z)).flatten().topk(BATCH // 2).values).mean().backward()
    kept = gradients(generator)
    critic.zero_grad()
    softplus(-critic(generator(z))).mean().backward()
    return kept, gradients(critic)


def check_step(generator, critic, called) -> None:
    z = torch.randn(BATCH, 4, dtype=torch.float64)
    kept, of_critic = expected(generator, critic, z)
    softplus(-called(generator(z))).mean().backward()
    assert (gradients(generator) - kept).norm() <= 1e-12 * kept.norm()
    assert torch.equal(gradients(critic), of_critic)


@pytest.mark.parametrize("through", ["wrapper", "module"])
def test_data_parallel(through):
    """Without devices DataParallel calls its module, which must not gate a second time."""
    generator, critic = networks()
    wrapped = DataParallel(critic)
    with attach(wrapped, half()):
        check_step(generator, critic, wrapped if through == "wrapper" else wrapped.module)


def test_a_critic_inside_a_data_parallel_of_several_devices_is_refused(monkeypatch):
    """Its replicas are no instances that were built, so nothing would be gated."""

    class Critic(nn.Linear):
        pass

    def over_two_devices(self, module):
        nn.Module.__init__(self)
        self.module, self.device_ids = module, [0, 1]

    monkeypatch.setattr(DataParallel, "__init__", over_two_devices)

    class Other(Critic):
        pass

    names = [f"{cls.__module__}:{cls.__qualname__}" for cls in (Other, Critic)]
    seam = CriticSeam(parse_critics([f"{names[0]}=1", f"{names[1]}=0"]), TopK())
    seam.apply()
    try:
        both = nn.Sequential(nn.Linear(2, 2), Critic(2, 1))
        with pytest.raises(SeamNotFound, match=r"Critic=0: it runs .* one process a device"):
            DataParallel(both)
        # the critics themselves: the wrapper's output is gated, by the heads of the critic in it
        for number, critic in enumerate((Other(2, 1), both[1])):
            DataParallel(critic)
            assert len(seam.critics[number].attachments) == 2
    finally:
        seam.undo()


@pytest.fixture
def process_group(tmp_path):
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("unused", [False, True], ids=["plain", "find_unused_parameters"])
def test_distributed_data_parallel(unused):
    generator, critic = networks()
    wrapped = DistributedDataParallel(critic, find_unused_parameters=unused)
    topk = half()
    with attach(wrapped, topk):
        for _ in range(2):  # the reducer complains in the second if the first was disturbed
            check_step(generator, critic, wrapped)
            generator.zero_grad()
            critic.zero_grad()


@pytest.mark.slow
def test_two_ranks_rank_their_own_rows(tmp_path):
    """Each rank has its own batch and its own k rows; DDP averages."""
    command = [sys.executable, __file__, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}  # where torches lies
    ranks = [subprocess.Popen([*command, str(rank)], env=env) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    generator, critic = networks()
    z = torch.randn(2, BATCH, 4, generator=torch.Generator().manual_seed(1)).double()
    mean = (expected(generator, critic, z[0])[0] + expected(generator, critic, z[1])[0]) / 2
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert (found - mean).norm() <= 1e-12 * mean.norm()


@scalers
@pytest.mark.parametrize("how", ["line A", "attach"])
def test_autocast_and_loss_scaling(how):
    """bf16 scores, scaled loss: the same rows as by hand, gradients to rounding."""
    generator, critic = networks()
    generator, critic = generator.float(), critic.float()
    z, topk = torch.randn(BATCH, 4), half()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def backward(line):
        generator.zero_grad()
        critic.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = softplus(-line(critic(generator(z)))).mean()
        scaler.scale(loss).backward()
        return gradients(generator)

    by_hand = backward(lambda scores: scores.flatten().topk(BATCH // 2).values)
    if how == "line A":
        found = backward(topk)
    else:
        with attach(critic, topk):
            found = backward(lambda scores: scores)
    assert (found - by_hand).norm() <= 1e-2 * by_hand.norm()
    everything = backward(lambda scores: scores)
    assert (everything - by_hand).norm() > 1e-1 * by_hand.norm()


def rank_gradient(folder: str, rank: int) -> None:
    """What one of the two ranks does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/pair", rank=rank, world_size=2)
    generator, critic = networks()
    wrapped = DistributedDataParallel(generator)
    with attach(critic, half()):
        z = torch.randn(2, BATCH, 4, generator=torch.Generator().manual_seed(1)).double()
        softplus(-critic(wrapped(z[rank]))).mean().backward()
    torch.save(gradients(generator), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_gradient(sys.argv[1], int(sys.argv[2]))
