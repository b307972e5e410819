"""Images a second and peak memory of SN-GAN's, SAGAN's and BigGAN's networks: ours and others'.

    PYTHONPATH=tests python tests/benchmarks/images.py [--studiogan CHECKOUT] [--width 0.25]
        [--json FILE]
    PYTHONPATH=tests python tests/benchmarks/images.py --trainer --batch 256

torch-mimicry's networks come with the extra demo, and are no BigGAN; PyTorch-StudioGAN's are from a
checkout. All have the same sizes and are trained by one loop: a critic step on a batch of real and
generated images in one call, then a generator step, hinge loss, fused Adam. Others' networks run as
their repositories do and with channels-last memory, which ours have. Every round trains each of
them for one iteration, in random order. A ratio is the median over rounds of (time of the other /
time of ours in the same round), with a 95% bootstrap interval. An iteration counts the batch once.

With --trainer it is said what two iterations of SAGAN at 128 pixels take in the trainer of the
paper's experiments, top-k and all, the batch in four parts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import platform
import random
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from overhead import estimate
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from topk_plugin.reference.losses import LOSSES
from topk_plugin.reference.networks.biggan import BigGANCritic, BigGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator
from topk_plugin.reference.runs import keep_memory

CLASSES, SIZE = 10, 32
LATENTS = {"sngan": 128, "sagan": 128, "biggan": 80}
WARM_UP = 2
"""Rounds that are not counted."""

Pair = tuple[nn.Module, nn.Module]


def ours(model: str, width: float) -> Pair:
    latent, wide, narrow = LATENTS[model], round(256 * width), round(128 * width)
    if model == "sngan":
        return ResNetGenerator(SIZE, 3, latent, wide), ResNetCritic(SIZE, 3, narrow, spectral=True)
    if model == "biggan":
        wide = round(96 * width)
        return (
            BigGANGenerator(SIZE, 3, latent, wide, CLASSES, attention=16),
            BigGANCritic(SIZE, 3, wide, CLASSES, attention=16),
        )
    return (
        ResNetGenerator(SIZE, 3, latent, wide, CLASSES, spectral=True, attention=16),
        ResNetCritic(SIZE, 3, narrow, CLASSES, spectral=True, attention=16),
    )


def has_mimicry() -> bool:
    return "torch_mimicry" in sys.modules or importlib.util.find_spec("torch_mimicry") is not None


def mimicry(model: str, width: float) -> Pair:
    if "torch_mimicry" not in sys.modules:
        spec = importlib.util.find_spec("torch_mimicry")
        assert spec is not None  # see has_mimicry
        package = types.ModuleType("torch_mimicry")  # without what it imports besides
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["torch_mimicry"] = package
    nets = importlib.import_module(f"torch_mimicry.nets.{model}.{model}_32")
    name = {"sngan": "SNGAN", "sagan": "SAGAN"}[model]
    sizes = {"num_classes": CLASSES} if model == "sagan" else {}
    generator = getattr(nets, f"{name}Generator32")(ngf=round(256 * width), **sizes)
    return generator, getattr(nets, f"{name}Discriminator32")(ndf=round(128 * width), **sizes)


def studiogan(model: str, width: float, checkout: Path) -> Pair:
    folder = checkout / "src"
    if "utils.misc" not in sys.modules:  # without what it imports besides
        sys.path.insert(0, str(folder))
        misc, utils = types.ModuleType("utils.misc"), types.ModuleType("utils")
        misc.dummy_context_mgr = contextlib.nullcontext  # type: ignore[attr-defined]
        utils.__path__, utils.misc = [str(folder / "utils")], misc  # type: ignore[attr-defined]
        sys.modules |= {"utils": utils, "utils.misc": misc}
    file, base, shared = ("big_resnet", 96, 128) if model == "biggan" else ("resnet", 64, "N/A")
    nets, ops = importlib.import_module(f"models.{file}"), importlib.import_module("utils.ops")
    attends = model != "sngan"  # and its generator, too, has spectral norms and classes
    modules = types.SimpleNamespace(
        g_act_fn=nn.ReLU(inplace=True), d_act_fn=nn.ReLU(inplace=True),
        g_bn=ops.ConditionalBatchNorm2d if attends else ops.batchnorm_2d,
        g_conv2d=ops.snconv2d if attends else ops.conv2d,
        g_linear=ops.snlinear if attends else ops.linear,
        d_conv2d=ops.snconv2d, d_linear=ops.snlinear, d_embedding=ops.sn_embedding,
    )  # fmt: skip
    options = types.SimpleNamespace(info_type="N/A", g_info_injection="N/A")
    conditional = ("cBN", "PD") if attends else ("W/O", "W/O")
    wide = round(base * width)  # of which it makes 4 times as many, and twice
    return (
        nets.Generator(
            LATENTS[model], shared, SIZE, wide, attends, [2], conditional[0], CLASSES, "ortho",
            "N/A", False, modules, options,
        ),
        nets.Discriminator(
            SIZE, wide, True, attends, [1], conditional[1], "W/O", "N/A", False, CLASSES, "ortho",
            "N/A", False, modules, options,
        ),
    )  # fmt: skip


def scores(output: Tensor | dict[str, Tensor]) -> Tensor:
    return (output["adv_output"] if isinstance(output, dict) else output).flatten()


def iteration(
    pair: Pair, latent: int, batch: int, conditional: bool, device: str, last: bool
) -> Callable:
    """One critic step and one generator step."""
    generator, critic = (network.to(device).train() for network in pair)
    if last:
        for network in pair:
            network.to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.Adam(n.parameters(), 2e-4, betas=(0.0, 0.9), fused=True) for n in pair
    ]
    real = torch.rand(batch, 3, SIZE, SIZE, device=device) * 2 - 1
    if last:
        real = real.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,), device=device)
    both = torch.cat([labels, labels])
    known = [labels] if conditional else []

    def step() -> None:
        z = torch.randn(batch, latent, device=device)
        critic.requires_grad_(True)
        with torch.no_grad():
            fake = generator(z, *known)
        found = scores(critic(torch.cat([real, fake]), *([both] if conditional else [])))
        optimizers[1].zero_grad()
        LOSSES["hinge"].critic_loss(*found.chunk(2)).backward()
        optimizers[1].step()
        critic.requires_grad_(False)
        found = scores(critic(generator(z, *known), *known))
        optimizers[0].zero_grad()
        LOSSES["hinge"].generator_loss(found).backward()
        optimizers[0].step()

    return step


Way = tuple[str, str, bool]  # whose networks, which ones, whether in channels-last memory


def made(way: Way, options: argparse.Namespace) -> Callable:
    whose, model, last = way
    torch.manual_seed(0)
    if whose == "ours":
        pair = ours(model, options.width)
    elif whose == "mimicry":
        pair = mimicry(model, options.width)
    else:
        pair = studiogan(model, options.width, options.studiogan)
    # StudioGAN's networks and mimicry's critic take labels where they have classes, or anywhere
    labelled = model != "sngan" or whose == "studiogan"
    return iteration(pair, LATENTS[model], options.batch, labelled, options.device, last)


def peak(way: Way, options: argparse.Namespace, answer: multiprocessing.Queue) -> None:
    """Peak memory in MiB of three iterations, beyond what a process has before them."""
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        step = made(way, options)
        for _ in range(3):
            step()
        answer.put(torch.cuda.max_memory_allocated() / 2**20)
        return
    before = most_so_far()
    step = made(way, options)
    for _ in range(3):
        step()
    answer.put(most_so_far() - before)


def most_so_far() -> float:
    """This process's peak memory in MiB, on Linux; what getrusage says has the parent's in it."""
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 2**10


def peaks(ways: list[Way], options: argparse.Namespace, console: Console) -> dict[Way, float]:
    """Of each a process's own."""
    context = multiprocessing.get_context("spawn")
    memory = {}
    for way in track(ways, description="memory", console=console):
        answer = context.Queue()
        process = context.Process(target=peak, args=(way, options, answer))
        process.start()
        memory[way] = answer.get()
        process.join()
    return memory


def measure(model: str, options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    ways: list[Way] = [("ours", model, True)]
    others = ["mimicry"] if has_mimicry() and model != "biggan" else []
    for whose in [*others, *(["studiogan"] if options.studiogan else [])]:
        ways += [(whose, model, False), (whose, model, True)]
    memory = peaks(ways, options, console) if options.peaks else {}
    steps = {way: made(way, options) for way in ways}
    times: dict[Way, list[float]] = {way: [] for way in ways}
    begun = time.monotonic()
    for round_ in track(range(-WARM_UP, options.rounds), description=model, console=console):
        if round_ > 2 and time.monotonic() - begun > options.seconds:
            break
        for way in random.sample(ways, len(ways)):
            start = time.perf_counter()
            steps[way]()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if round_ >= 0:
                times[way].append(time.perf_counter() - start)
    rows = []
    for way in ways:
        ratio = estimate([b / a for a, b in zip(times[ways[0]], times[way], strict=True)])
        row: dict[str, Any] = {
            "model": model,
            "whose": way[0],
            "layout": "channels last" if way[2] else "contiguous",
            "images/s": options.batch / statistics.median(times[way]),
            "rounds": len(times[way]),
            "MiB": memory.get(way),
            "ours is faster": ratio,
        }
        rows.append(row)
        size = f" {memory[way]:7.0f} MiB" if memory else ""
        console.print(
            f"{model:6} {way[0]:10} {row['layout']:14} {row['images/s']:8.1f} images/s{size}"
            "   ours is {:.2f} [{:.2f}, {:.2f}] times as fast".format(*ratio)
        )
    return rows


def trainer(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """SAGAN at 128 pixels, top-k and all, as in the paper's experiments."""
    from topk_plugin.reference import images  # it wants more than the networks do
    from topk_plugin.reference.runs import Member

    settings = images.Settings(
        dataset="digits", batch=options.batch, accumulation=4, iterations=2, width=options.width
    )
    before = most_so_far() if options.device == "cpu" else 0.0
    member = Member(128, "top-k+sagan-128", 0)
    training = images.Training(settings, [member], torch.device(options.device))

    def now() -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    training.advance(1)
    start = now()
    training.advance(2)
    seconds = now() - start
    size = most_so_far() - before
    if options.device == "cuda":
        size = torch.cuda.max_memory_allocated() / 2**20
    console.print(
        f"SAGAN-128, batch {options.batch} in 4 parts: {size:.0f} MiB at most, {seconds:.2f} s an "
        "iteration"
    )
    return [{"model": "sagan-128", "batch": options.batch, "MiB": size, "s": seconds}]


def chosen(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=LATENTS, default=[*LATENTS])
    parser.add_argument("--studiogan", type=Path, help="a checkout of PyTorch-StudioGAN")
    parser.add_argument("--width", type=float, default=1.0, help="relative to the papers'")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a model, about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peaks", dest="peaks", action="store_false", help="no memory")
    parser.add_argument("--trainer", action="store_true", help="SAGAN-128 in its trainer")
    parser.add_argument("--json", type=Path, help="where the numbers are written, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = chosen()
    torch.set_num_threads(options.threads)
    keep_memory()  # as in a run, and for all
    random.seed(0)
    console = Console(width=120)
    console.print(
        f"torch {torch.__version__}, {platform.machine()}, {options.device}, "
        f"{options.threads} threads, batch {options.batch}, width {options.width:g}"
    )
    found = trainer(options, console) if options.trainer else []
    if not options.trainer:
        if not has_mimicry():
            console.print("torch-mimicry is not installed: ours alone (see README's test command)")
        for name in options.models:
            found += measure(name, options, console)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
