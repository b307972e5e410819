"""What the experiments on images cost at the paper's length: counted work, and measured time.

    python tests/benchmarks/cost.py [--device cuda] [--images 8] [--steps 3] [--set bf16=true]

Each model is trained for a few iterations by the experiments' own loop, on random images, with as
many in a batch as ``--images`` says (default: the experiment's batch). The floating-point
operations of an iteration are counted (convolutions and matrix products, forward and backward), its
time is the median over ``--steps``; both go up with the batch. ``--rates`` adds what devices would
need that keep up so many TFLOP/s. A score is of 50,000 samples, made by the generator and seen by
Inception, whose weights here are random. Eight devices are taken to need an eighth of the time of
one, which no network of devices quite reaches.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from topk_plugin import VOTING_STEPS
from topk_plugin.reference.experiments import EXPERIMENTS
from topk_plugin.reference.fid.inception_features import POOL3, inception_network
from topk_plugin.reference.images import Settings, Training, preparation
from topk_plugin.reference.models import ARMS, MODELS
from topk_plugin.reference.runs import Member, keep_memory, settings_of

RESULTS = {"table3": 10, "table4": 1_000, "table5": 10, "neurips": 10}
"""And the classes of their data."""


class Random:
    """Random images, as a source of the experiments has them."""

    name, digest, channels, count, length = "random", "", 3, 1 << 20, 1 << 20

    def __init__(self, classes: int, size: int, batch: int, device: torch.device) -> None:
        self.classes, draws = classes, torch.Generator().manual_seed(0)
        real = torch.rand(batch, 3, size, size, generator=draws) * 2 - 1
        self.real = real.to(device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(classes, (batch,), generator=draws).to(device)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        return self.real, self.labels


class Global(contextlib.nullcontext):
    """Counts for no module in particular."""

    parents = ("Global",)


class Cost(NamedTuple):
    """Of one image."""

    operations: float
    seconds: float


def cost(step: Callable[[], object], rows: int, steps: int, device: torch.device) -> Cost:
    """Of a step on that many images, without the first one."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Global()  # the counter's own fails at gradient penalties
    with counter:
        step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return Cost(counter.get_total_flops() / rows, statistics.median(times) / rows)


def of_training(
    result: str, model: str, settings: Settings, options: argparse.Namespace
) -> tuple[Cost, Cost]:
    """Of an image of the batch in training, and of a sample."""
    [size], device = EXPERIMENTS[result].cells, torch.device(options.device)
    rows = options.images or settings.batch
    random = Random(RESULTS[result], size, rows, device)
    preparation.source = lambda *args, **keywords: random
    own = dataclasses.replace(settings, batch=rows, iterations=None)
    training = Training(own, [Member(size, f"top-k+{model}", 0)], device)
    z = torch.randn(rows, MODELS[model].latent, device=device)
    y = random.labels
    sampled = cost(
        lambda: training.scoring.sample(training.sampled, z, y), rows, options.steps, device
    )
    if own.graphs:  # which are captured after these
        training.advance(VOTING_STEPS + 1)
    trained = cost(lambda: training.advance(training.iteration + 1), rows, options.steps, device)
    return trained, sampled


def of_inception(options: argparse.Namespace) -> Cost:
    """Of the features of an image."""
    device = torch.device(options.device)
    with pytest.MonkeyPatch.context() as patch:  # the weights stay as they are drawn
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        network = inception_network({}, POOL3).to(device)
    network = network.to(memory_format=torch.channels_last)
    rows = min(options.images or 64, 64)
    seen = torch.rand(rows, 3, 32, 32, device=device)
    with torch.no_grad():
        return cost(lambda: network(seen), rows, options.steps, device)


def measure(options: argparse.Namespace, console: Console) -> None:
    console.print(
        f"torch {torch.__version__}, {platform.machine()}, {options.device}"
        + (f" ({torch.cuda.get_device_name()})" if options.device == "cuda" else "")
        + f", {options.threads} threads, batch {options.images or 'of the experiment'}"
        + "".join(f", {text}" for text in options.set)
    )
    overrides = dict(text.split("=", 1) for text in options.set)
    features = of_inception(options)
    console.print(
        f"Inception: {features.operations / 1e9:.1f} GFLOP and "
        f"{features.seconds * 1e3:.1f} ms an image"
    )
    head = ("result", "model", "runs", "iterations", "batch", "GFLOP an image", "images/s")
    rates = [f"days at {rate:g} TFLOP/s, 1 / 8" for rate in options.rates]
    rows = [(*head, "EFLOP", "days here, 1 / 8", *rates)]
    for result in options.results:
        experiment = EXPERIMENTS[result]
        settings = settings_of(experiment, "paper", overrides)
        totals = Cost(0.0, 0.0)
        models = [ARMS[arm].model for arm in experiment.arms]
        for model in dict.fromkeys(models):
            trained, sampled = of_training(result, model, settings, options)
            length = settings.iterations or MODELS[model].iterations
            runs = models.count(model) * experiment.presets["paper"].seeds
            scored = length // settings.score_every * settings.samples
            whole = Cost(
                *(
                    runs * (length * settings.batch * t + scored * (s + f))
                    for t, s, f in zip(trained, sampled, features, strict=True)
                )
            )
            totals = Cost(*(a + b for a, b in zip(totals, whole, strict=True)))
            rows.append(
                (
                    result, MODELS[model].title, str(runs), f"{length:,}", str(settings.batch),
                    f"{trained.operations / 1e9:.2f}", f"{1 / trained.seconds:.1f}",
                    *told(whole, options.rates),
                )
            )  # fmt: skip
        rows.append((f"**{result}**", "all", *[""] * 5, *told(totals, options.rates)))
    for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]:
        print(f"| {' | '.join(row)} |")


def told(whole: Cost, rates: Sequence[float]) -> list[str]:
    days = [whole.seconds / 86_400, *(whole.operations / (1e12 * rate * 86_400) for rate in rates)]
    return [f"{whole.operations / 1e18:.2f}", *(f"{rounded(d)} / {rounded(d / 8)}" for d in days)]


def rounded(days: float) -> str:
    return f"{days:,.0f}" if days > 99 else f"{days:.2g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", nargs="+", choices=RESULTS, default=[*RESULTS])
    parser.add_argument("--images", type=int, help="in a batch")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="*", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    measure(options, Console(width=120))
