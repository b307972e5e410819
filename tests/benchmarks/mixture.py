"""What stacking four mixtures of Gaussians saves over training them one by one, on one core.

    PYTHONPATH=tests python tests/benchmarks/mixture.py [--rounds 50] [--iterations 4]

Every round trains both for a few iterations, in random order: the stacked trainer of Table 1 with
two members of each arm, and four plain loops of nn.Linear, each with its own networks. The sizes
are the paper's, and k is at its smallest, 3/4 of the batch. The ratio is the median over rounds
of (time of the plain loops / time of the stacked ones in the same round), with a 95% bootstrap
interval.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from overhead import bootstrap
from plain_mixture import CPU, Plain
from rich.console import Console
from rich.progress import track

from topk_plugin.reference.mixture import Settings, Training
from topk_plugin.reference.mixture.training import STACK
from topk_plugin.reference.runs import Member, keep_memory

WARM_UP = 4
"""Rounds that are not counted."""


def measure(rounds: int, iterations: int, console: Console) -> None:
    """Time both and print milliseconds for an iteration of one member, and the ratio."""
    settings = Settings(gamma=0.75, decay_every=WARM_UP * iterations)  # k = 3/4 B from then on
    members = [Member(25, arm, seed) for seed in range(STACK // 2) for arm in ("gan", "top-k")]
    stacked = Training(settings, members, CPU)
    plain = [Plain(settings, member) for member in members]

    def together() -> None:
        stacked.advance(stacked.iteration + iterations)

    def one_by_one() -> None:
        for loop in plain:
            loop.advance(loop.iteration + iterations)

    ways: dict[str, Callable[[], None]] = {"stacked": together, "one by one": one_by_one}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in track(range(-WARM_UP, rounds), description="training", console=console):
        for way in random.sample(list(ways), len(ways)):
            start = time.perf_counter()
            ways[way]()
            if round_ >= 0:
                times[way].append((time.perf_counter() - start) / iterations / len(members))
    for way, seconds in times.items():
        console.print(f"{way}: {1e3 * statistics.median(seconds):.2f} ms an iteration of a member")
    ratios = [b / a for a, b in zip(times["stacked"], times["one by one"], strict=True)]
    low, high = bootstrap(ratios)
    console.print(f"ratio: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=4, help="timed together")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as in a run, and for both
    random.seed(0)
    console = Console(width=110)
    console.print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, {STACK} members")
    measure(options.rounds, options.iterations, console)
