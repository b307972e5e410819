"""What top-k costs a generator step, as ratios of interleaved pairs.

    python tests/benchmarks/overhead.py [--rounds 200] [--threads N] [--model dcgan] [--model mlp]
        [--device cuda] [--steps 20]

Every round runs each arm once, in random order, on the same networks and noise. A row is the
median over rounds of (time of the arm / time of the baseline in the same round) with a 95%
bootstrap interval. k is half the batch. Each arm is a whole generator step: noise, generator,
critic, loss, backward, Adam; or several in a row, as they follow each other on a GPU. The vote on
the direction is over, as it is but for the first hundred steps of a training. The shielded gate is
used where a generator step cannot be known in advance; it runs the critic's backward to its input
twice where the critic's rows act on each other, as in the DCGAN's BatchNorm, until it was learned
that the loop throws the critic's gradient away there; of the MLP's critic nothing need be learned.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.functional import softplus

from topk_plugin import TopK, attach
from topk_plugin.loop import places

places.LEARNED = 3  # each round attaches anew


def dcgan() -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """32x32 DCGAN of width 64, batch 64; noise (B, 128, 1, 1)."""

    def up(n: int, m: int, first: bool = False) -> list[nn.Module]:
        place = {"stride": 1, "padding": 0} if first else {"stride": 2, "padding": 1}
        return [nn.ConvTranspose2d(n, m, 4, bias=False, **place), nn.BatchNorm2d(m), nn.ReLU(True)]

    def down(n: int, m: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, 4, 2, 1, bias=False), nn.BatchNorm2d(m), nn.LeakyReLU(0.2, True)]

    generator = nn.Sequential(*up(128, 256, True), *up(256, 128), *up(128, 64))
    generator.append(nn.ConvTranspose2d(64, 3, 4, 2, 1)).append(nn.Tanh())
    critic = nn.Sequential(nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, True))
    critic.extend([*down(64, 128), *down(128, 256), nn.Conv2d(256, 1, 4)])
    return generator, critic, (64, 128, 1, 1)


def mlp() -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Four linear layers of 256, batch 256, as in the mixture experiment; noise (B, 2)."""

    def net(out: int) -> nn.Module:
        hidden = [nn.Linear(256, 256), nn.ReLU()] * 2
        return nn.Sequential(nn.Linear(2, 256), nn.ReLU(), *hidden, nn.Linear(256, out))

    return net(2), net(1), (256, 2)


def arms(
    generator: nn.Module, critic: nn.Module, shape: tuple[int, ...], device: str, steps: int
) -> dict[str, Callable]:
    """Generator steps each way; what runs them returns their seconds."""
    batch = shape[0]
    generator.to(device)
    critic.to(device)
    optimizer = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999))

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(line: Callable, around: Callable = contextlib.nullcontext) -> float:
        start = now()
        for _ in range(steps):
            generator.zero_grad()
            critic.zero_grad()
            with around():
                fake = generator(torch.randn(shape, device=device))
                softplus(-line(critic(fake))).mean().backward()
            optimizer.step()
        return (now() - start) / steps

    def half(**settings: str | bool) -> TopK:
        topk = TopK(gamma=0.5, nu=0.5, direction="high", **settings)
        topk.end_epoch()
        return topk

    def attached(
        marked: bool = False, spare: bool = False, freeze: bool = False, learn: bool = True,
        **settings: str,
    ) -> Callable:  # fmt: skip
        topk, begun = half(spare=learn, **settings), []

        def run() -> float:
            critic.requires_grad_(not freeze)
            with attach(critic, topk):
                around = contextlib.nullcontext
                if marked:
                    around = functools.partial(topk.generator_step, spare)
                # other things are looked at in the first steps, and in those after attaching
                # whether the critic's rows act on each other, and where it is called
                for _ in range((6 if begun else 60) // steps + 2):
                    seconds = timed(lambda scores: scores, around)
                begun.append(True)
            critic.requires_grad_(True)
            return seconds

        return run

    def by_hand(scores: torch.Tensor) -> torch.Tensor:
        return scores.flatten().topk(batch // 2).values

    def frozen(line: Callable) -> Callable:
        def run() -> float:
            critic.requires_grad_(False)
            seconds = timed(line)
            critic.requires_grad_(True)
            return seconds

        return run

    line = half()
    return {
        "nothing": lambda: timed(lambda scores: scores),
        "gather by hand": lambda: timed(by_hand),
        "line A, topk(scores)": lambda: timed(line),
        "attach, marked step (score gate)": attached(marked=True),
        "attach, marked step, critic spared": attached(marked=True, spare=True),
        "attach, gate=score": attached(gate="score"),
        "attach, nothing known (shielded)": attached(learn=False),
        "attach, nothing known, learned": attached(),
        "nothing, critic frozen": frozen(lambda scores: scores),
        "gather by hand, critic frozen": frozen(by_hand),
        "attach, critic frozen (score gate)": attached(freeze=True),
    }


def bootstrap(ratios: list[float], rounds: int = 2000) -> tuple[float, float]:
    """95% interval of the median."""
    medians = sorted(
        statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(rounds)
    )
    return medians[int(0.025 * rounds)], medians[int(0.975 * rounds)]


def measure(name: str, rounds: int, device: str, steps: int, console: Console) -> None:
    """Time all arms of one model and print the table."""
    torch.manual_seed(0)
    random.seed(0)
    runs = arms(*{"dcgan": dcgan, "mlp": mlp}[name](), device, steps)
    times: dict[str, list[float]] = {arm: [] for arm in runs}
    for round_ in track(range(-10, rounds), description=name, console=console):
        for arm in random.sample(list(runs), len(runs)):
            seconds = runs[arm]()
            if round_ >= 0:  # the first ten warm up
                times[arm].append(seconds)
    table = Table(title=f"{name}: generator step, {rounds} interleaved rounds")
    for column in ("arm", "median ms", "/ gather by hand", "/ nothing"):
        table.add_column(column)
    for arm, mine in times.items():
        cells = []
        for base in ("gather by hand", "nothing"):
            # the critic's parameters get no gradient in the frozen arms: compare like with like
            like = f"{base}, critic frozen" if "frozen" in arm else base
            ratios = [a / b for a, b in zip(mine, times[like], strict=True)]
            low, high = bootstrap(ratios)
            cells.append(f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]")
        table.add_row(arm, f"{1e3 * statistics.median(mine):.2f}", *cells)
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", action="append", choices=("dcgan", "mlp"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=1, help="timed together")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=110)
    where = f"{platform.machine()}, {options.threads} threads"
    if options.device == "cuda":
        where = f"{torch.cuda.get_device_name()}, {options.steps} steps at a time"
    console.print(f"torch {torch.__version__}, {where}")
    for model in options.model or ("dcgan", "mlp"):
        measure(model, options.rounds, options.device, options.steps, console)
