"""What it costs that more rows compete, as ratios of interleaved pairs.

    python tests/benchmarks/contest.py [--rounds 30] [--part batch] [--part ranks]
        [--part accumulate] [--ranks 1,2,4,8] [--model dcgan] [--json FILE]

- batch: line A's gate alone, forward and backward on scores (B, 1) from B = 64 to 65,536, k = B/2;
  beside the selection as StudioGAN has it (``torch.topk`` of the scores) and as lucidrains' loops
  have it (``topk`` with ``largest=False``). B log B is what a sort takes.
- ranks: a whole generator step on so many gloo processes, the generator in
  DistributedDataParallel: the rows of all ranks compete, against those of each rank alone.
- accumulate: a generator step of so many micro-batches, whose rows compete
  (``topk.accumulate``), against each ranked alone; and the bytes that autograd keeps, whose graphs
  are then in memory together.

A row is the median over rounds with a 95% bootstrap interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from overhead import MODELS, estimate
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, distributed
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel

from topk_plugin import TopK

Row = dict[str, Any]
BATCHES = [64, 256, 1024, 4096, 16384, 65536]
MICRO = [1, 2, 4, 8]


def half(**settings: Any) -> TopK:
    """Keeps half of a batch."""
    topk = TopK(gamma=0.5, nu=0.5, direction="high", **settings)
    topk.end_epoch()
    return topk


def interleaved(
    arms: dict[str, Callable[[], float]], rounds: int, shuffled: random.Random, warm: int = 3
) -> dict[str, list[float]]:
    """Seconds of each arm, round by round."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for round_ in range(-warm, rounds):
        for arm in shuffled.sample(list(arms), len(arms)):
            seconds = arms[arm]()
            if round_ >= 0:
                times[arm].append(seconds)
    return times


def ratios(times: dict[str, list[float]], arm: str, base: str) -> list[float]:
    """Median and 95% interval of what ``arm`` takes of ``base``."""
    return estimate([a / b for a, b in zip(times[arm], times[base], strict=True)])


# --- B --------------------------------------------------------------------------------------------


def of_batch(rounds: int, console: Console) -> list[Row]:
    """The gate alone, by B."""

    def studiogan(scores: Tensor) -> Tensor:
        return torch.topk(scores.flatten(), len(scores) // 2).values

    def lucidrains(scores: Tensor) -> Tensor:
        return scores.flatten().topk(k=len(scores) // 2, largest=False).values

    rows = []
    for batch in track(BATCHES, description="batch", console=console):
        scores = torch.randn(batch, 1, requires_grad=True)
        optimizer, topk = torch.optim.SGD([scores], 0.0), half()
        repeats = max(1, 20_000 // batch)

        def timed(line: Callable[[Tensor], Tensor]) -> Callable[[], float]:
            def run() -> float:
                start = time.perf_counter()
                for _ in range(repeats):  # noqa: B023
                    scores.grad = None  # noqa: B023
                    line(scores).mean().backward()  # noqa: B023
                    optimizer.step()  # noqa: B023
                return (time.perf_counter() - start) / repeats  # noqa: B023

            return run

        lines = {"nothing": lambda s: s, "topk(scores)": topk, "StudioGAN's": studiogan}
        arms = {name: timed(line) for name, line in (lines | {"lucidrains'": lucidrains}).items()}
        times = interleaved(arms, rounds, random.Random(batch))
        gate = [a - b for a, b in zip(times["topk(scores)"], times["nothing"], strict=True)]
        row: Row = {"B": batch, "gate, us": [1e6 * one for one in estimate(gate)]}
        row["ns / (B log2 B)"] = 1e9 * statistics.median(gate) / (batch * math.log2(batch))
        for name in ("StudioGAN's", "lucidrains'"):
            row[f"/ {name}"] = ratios(times, "topk(scores)", name)
        rows.append(row)
    return rows


# --- ranks ----------------------------------------------------------------------------------------


def of_ranks(worlds: Sequence[int], model: str, rounds: int, console: Console) -> list[Row]:
    """A generator step, by the number of ranks."""
    rows = []
    for world in track(worlds, description="ranks", console=console):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = mp.get_context("fork").SimpleQueue()
        arguments = (world, port, model, rounds, results)
        mp.start_processes(_on_a_rank, args=arguments, nprocs=world, start_method="fork")
        rows.append(results.get())
    return rows


def _on_a_rank(rank: int, world: int, port: int, model: str, rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    generator, critic, shape = MODELS[model]()
    generator = DistributedDataParallel(generator)
    optimizer = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999))
    torch.manual_seed(rank)

    def timed(line: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        def run() -> float:
            distributed.barrier()
            start = time.perf_counter()
            optimizer.zero_grad()
            critic.zero_grad()
            softplus(-line(critic(generator(torch.randn(shape))))).mean().backward()
            optimizer.step()
            distributed.barrier()
            return time.perf_counter() - start

        return run

    arms = {
        "nothing": timed(lambda scores: scores),
        "rank": timed(half()),
        "global": timed(half(scope="global")),
    }
    times = interleaved(arms, rounds, random.Random(world))  # in the same order on all
    if rank == 0:
        row: Row = {"ranks": world, "step, ms": 1e3 * statistics.median(times["rank"])}
        row["global / rank"] = ratios(times, "global", "rank")
        row["global / nothing"] = ratios(times, "global", "nothing")
        results.put(row)
    distributed.destroy_process_group()


# --- micro-batches --------------------------------------------------------------------------------


def of_accumulation(model: str, rounds: int, console: Console) -> list[Row]:
    """A generator step, by the number of its micro-batches."""
    rows = []
    for count in track(MICRO, description="accumulate", console=console):
        torch.manual_seed(0)
        generator, critic, shape = MODELS[model]()
        shape = (max(2, shape[0] // count), *shape[1:])
        optimizer = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999))
        together, alone = half(), half()
        kept = [0, 0]  # bytes that autograd keeps now, and the most of them

        def loss(topk: TopK) -> Tensor:
            scores = topk(critic(generator(torch.randn(shape))))  # noqa: B023
            return softplus(-scores).mean() / count  # noqa: B023

        def each() -> None:
            for _ in range(count):  # noqa: B023
                loss(alone).backward()  # noqa: B023

        def all_at_once() -> None:
            with together.accumulate(steps=count):  # noqa: B023
                sum(loss(together) for _ in range(count)).backward()  # noqa: B023

        def timed(backward: Callable[[], None]) -> Callable[[], float]:
            def run() -> float:
                start = time.perf_counter()
                optimizer.zero_grad()  # noqa: B023
                backward()
                optimizer.step()  # noqa: B023
                return time.perf_counter() - start

            return run

        times = interleaved(
            {"each": timed(each), "together": timed(all_at_once)}, rounds, random.Random(count)
        )
        row: Row = {"micro-batches": count, "step, ms": 1e3 * statistics.median(times["each"])}
        row["together / each"] = ratios(times, "together", "each")
        peaks = []
        for backward in (each, all_at_once):
            with _counted(kept):
                backward()
            peaks.append(kept[1])
        row["kept bytes / each"] = peaks[1] / peaks[0]
        rows.append(row)
    return rows


class _Saved:
    """A tensor that autograd keeps, counted until it lets go."""

    def __init__(self, tensor: Tensor, kept: list[int]) -> None:
        self.tensor, self.kept = tensor, kept
        kept[0] += tensor.numel() * tensor.element_size()
        kept[1] = max(kept)

    def __del__(self) -> None:
        self.kept[0] -= self.tensor.numel() * self.tensor.element_size()


@contextlib.contextmanager
def _counted(kept: list[int]) -> Any:
    kept[:] = [0, 0]
    hooks = torch.autograd.graph.saved_tensors_hooks
    with hooks(lambda tensor: _Saved(tensor, kept), lambda saved: saved.tensor):
        yield


# --------------------------------------------------------------------------------------------------


def show(title: str, rows: Sequence[Row], console: Console) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        digits = 1 if value[0] > 20 else 3
        return "{} [{}, {}]".format(*(f"{number:.{digits}f}" for number in value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--part", action="append", choices=("batch", "ranks", "accumulate"))
    parser.add_argument("--ranks", default="1,2,4,8")
    parser.add_argument("--model", default="dcgan", choices=MODELS)
    parser.add_argument("--json", type=Path, help="where the numbers are written, too")
    options = parser.parse_args(arguments)
    worlds = [int(number) for number in options.ranks.split(",")]
    console = Console(width=110)
    console.print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    found: dict[str, list[Row]] = {}
    parts = options.part or ["batch", "ranks", "accumulate"]
    if "ranks" in parts:  # forked before any thread was started
        found["ranks"] = of_ranks(worlds, options.model, options.rounds, console)
    torch.set_num_threads(1)
    if "batch" in parts:
        found["batch"] = of_batch(options.rounds, console)
    if "accumulate" in parts:
        found["accumulate"] = of_accumulation(options.model, options.rounds, console)
    for title, rows in found.items():
        show(f"{title}: {options.rounds} interleaved rounds", rows, console)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
