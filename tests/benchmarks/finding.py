"""What it costs to find the critics, as ratios of interleaved pairs.

    python tests/benchmarks/finding.py [--rounds 100] [--threads N] [--model mlp] [--model dcgan]

Every round begins two trainings on new networks, one whose critics are given to ``attach`` and one
in which they are sought, and times their steps: a critic step and a generator step. A row is the
median over rounds of (sought / given) with a 95% bootstrap interval:

- sought: there are two critics of two kinds, whose own steps see augmented samples, all in one
  batch. Neither is clear, so that every step is one in which they are looked at.
- found: one critic, found in the first step, and nothing is looked at any more.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Callable

import torch
from overhead import bootstrap, dcgan, mlp
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.functional import softplus

from topk_plugin import TopK, attach, find
from topk_plugin.errors import NoEffectError
from topk_plugin.finding.passes import PATIENCE


def training(generator: nn.Module, critics: list[nn.Module], shape: tuple[int, ...]) -> Callable:
    """Its step, on data like the generator's own first samples."""
    of_critics, of_generator = (
        torch.optim.Adam(ps, 2e-4, (0.5, 0.999))
        for ps in ([p for c in critics for p in c.parameters()], generator.parameters())
    )
    with torch.no_grad():
        real = generator(torch.randn(shape))
    signs = torch.ones(2 * len(real), 1)
    signs[: len(real)] = -1

    def step() -> float:
        start = time.perf_counter()
        of_critics.zero_grad()
        fake = generator(torch.randn(shape)).detach()
        if len(critics) == 1:
            loss = softplus(-critics[0](real)).mean() + softplus(critics[0](fake)).mean()
        else:
            both = 1.01 * torch.cat([real, fake])  # augmented: not known again
            loss = sum(softplus(signs * c(both).flatten(1)).mean() for c in critics)
        loss.backward()
        of_critics.step()
        of_generator.zero_grad()
        fake = generator(torch.randn(shape))
        sum(softplus(-c(fake)).mean() for c in critics).backward()
        of_generator.step()
        return time.perf_counter() - start

    return step


def times(model: Callable, seed: int, sought: bool, n: int) -> list[float]:
    """Seconds of each step with ``n`` critics, while they are sought or after they were found."""
    torch.manual_seed(seed)
    generator, critic, shape = model()
    critics = [critic, nn.Sequential(model()[1], nn.Softplus())][:n]
    step, topk = training(generator, critics, shape), TopK(gamma=0.5, nu=0.5)
    before, after = (0, PATIENCE - 10) if n == 2 else (PATIENCE + 10, 30)
    with contextlib.ExitStack() as stack:
        if sought:
            stack.enter_context(contextlib.suppress(NoEffectError))
            finder = stack.enter_context(find(topk))
        else:
            for one in critics:
                stack.enter_context(attach(one, topk))
        for _ in range(before):
            step()
        seconds = [step() for _ in range(after)]
        if sought and len(finder.found) != n % 2:
            raise RuntimeError(f"found {finder}, which this is not meant to measure")
    return seconds


def measure(name: str, model: Callable, rounds: int, console: Console) -> None:
    """Print the ratios of one pair of networks."""
    ratios: dict[str, list[float]] = {"sought": [], "found": []}
    for seed in track(range(rounds), description=name, console=console):
        for part, n in {"sought": 2, "found": 1}.items():
            arms = {arm: times(model, seed, arm, n) for arm in random.sample([False, True], 2)}
            pairs = zip(arms[True], arms[False], strict=True)
            ratios[part].append(statistics.median(a / b for a, b in pairs))
    for part, values in ratios.items():
        low, high = bootstrap(values)
        console.print(f"{name}, {part}: {statistics.median(values):.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", action="append", choices=("dcgan", "mlp"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random.seed(0)
    out = Console(width=110)
    for chosen in options.model or ("dcgan", "mlp"):
        measure(chosen, {"dcgan": dcgan, "mlp": mlp}[chosen], options.rounds, out)
