"""The networks and optimizers of the experiments on images, as ``models.MODELS`` says.

Also averaged weights, which need statistics of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from topk_plugin.errors import unknown_name
from topk_plugin.reference.data.batches import Source
from topk_plugin.reference.images.settings import Settings
from topk_plugin.reference.models import ARMS, MODELS, Arm, Model
from topk_plugin.reference.networks.biggan import BigGANCritic, BigGANGenerator
from topk_plugin.reference.networks.dcgan import DCGANCritic, DCGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.training import stream_of


def arm_of(name: str) -> tuple[Arm, Model]:
    """An arm and its model.

    Raises:
        ConfigError: no arm of an experiment on images.
    """
    if name not in ARMS:
        raise unknown_name(f"arm {name}", "arm", name, ARMS)
    return ARMS[name], MODELS[ARMS[name].model]


def networks(
    model: Model, settings: Settings, size: int, channels: int, classes: int
) -> tuple[nn.Module, nn.Module]:
    """Generator (z (B, L), y (B,)) -> images (B, C, H, W) in [-1, 1], and critic -> scores (B,)."""
    labels = classes if model.conditional else 0
    wide = [max(1, round(settings.width * w)) for w in (model.generator_width, model.critic_width)]
    if model.family == "dcgan":
        return (
            DCGANGenerator(size, channels, model.latent, wide[0], labels, model.bias),
            DCGANCritic(size, channels, wide[1], labels, model.bias),
        )
    if model.family == "biggan":
        at = model.attention
        return (
            BigGANGenerator(size, channels, model.latent, wide[0], labels, attention=at),
            BigGANCritic(size, channels, wide[1], labels, attention=at),
        )
    both, one = model.spectral == "both", bool(model.spectral)
    return (
        ResNetGenerator(size, channels, model.latent, wide[0], labels, both, model.attention),
        ResNetCritic(size, channels, wide[1], labels, one, model.attention),
    )


def initial_networks(
    model: Model, settings: Settings, member: Member, images: Source
) -> tuple[nn.Module, nn.Module]:
    """Those of :func:`networks` for real images, with a member's initial weights."""
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global one
        torch.default_generator.manual_seed(stream_of(member, "weights").initial_seed())
        return networks(model, settings, member.cell, images.channels, images.classes)


def optimizer(model: Model, network: nn.Module, learning_rate: float, graphs: bool) -> Optimizer:
    """As the model's paper has it; in a CUDA graph the learning rate is a tensor."""
    on_gpu = graphs and next(network.parameters()).is_cuda
    # on the device: a graph keeps what a number or a tensor on the CPU was when it was captured
    rate: Any = torch.tensor(learning_rate, device="cuda") if on_gpu else learning_rate
    if model.optimizer == "rmsprop":
        return RMSprop(network.parameters(), rate, foreach=True, capturable=on_gpu)
    return Adam(
        network.parameters(), rate, betas=model.betas, weight_decay=model.weight_decay,
        fused=True, capturable=on_gpu,
    )  # fmt: skip


def set_learning_rates_(optimizers: Iterable[Optimizer], rates: Iterable[float]) -> None:
    """One for each optimizer, whether a number or, in a CUDA graph, a tensor."""
    for own, rate in zip(optimizers, rates, strict=True):
        for group in own.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def descend(optimizer: Optimizer, losses: Iterable[Tensor]) -> None:
    """A step of an optimizer's network down the sum of losses, averaged over the ranks."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward(inputs=own)
    ranks.average_([p.grad for p in own])
    optimizer.step()


def averaged_copy(generator: nn.Module) -> nn.Module:
    """For averaged weights, see :func:`settle_`."""
    averaged = copy.deepcopy(generator).requires_grad_(False)
    for module in averaged.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running statistics are plain means
    return averaged


@torch.no_grad()
def follow_(averaged: nn.Module, generator: nn.Module, decay: float) -> None:
    """Averaged weights move toward the generator's."""
    means: list[Tensor] = [*averaged.parameters()]
    latest: list[Tensor] = [*generator.parameters()]
    torch._foreach_lerp_(means, latest, 1 - decay)


@torch.no_grad()
def settle_(
    averaged: nn.Module, generator: nn.Module, latents: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """Finds what averaged weights need beside themselves, whatever they had of it.

    Spectral norms, by power iterations from the generator's vectors, and BatchNorm's statistics
    over some batches: "standing" ones (Brock et al. 2019). The generator's
    own are of its latest weights.

    Args:
        latents: z (B, L) and labels (B,) of each batch.
    """
    for mine, its in zip(averaged.buffers(), generator.buffers(), strict=True):
        mine.copy_(its)
    for module in averaged.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    averaged.train()  # in which a pass is also one power iteration
    for z, y in latents:
        averaged(z, y)
    averaged.eval()
