"""What the number of rows costs, and rows that compete over micro-batches or ranks.

    python tests/benchmarks/contest.py [--rounds 60] [--slow 20] [--threads N] [--json FILE]

Interleaved rounds, as in overhead.py: an arm's ratio is to the baseline in the same round, and
intervals are of the median, 95%, by bootstrap. k is half of the rows that compete.

rows            scores alone, B of them: a loss and its backward. By hand is torch.topk, as
                StudioGAN's and lucidrains' losses have it
micro-batches   whole generator steps of an MLP, 256 rows in A micro-batches: ranked one by one, or
                competing; and what autograd holds at most for the backward passes
ranks           whole steps of a small MLP, 64 rows a rank, under DDP over gloo; and of the DCGAN on
                two. All ranks run on this machine: where they are more than its cores they wait
                for each other, with and without top-k
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import platform
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from overhead import (
    HAND,
    MODELS,
    NOTHING,
    Arms,
    Line,
    Run,
    Steps,
    by_hand,
    half,
    measured,
    plain,
    show,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel

from topk_plugin import TopK
from topk_plugin.core.optimizers import unlisten

ROWS = [64, 256, 1024, 4096, 16384, 65536]
MICRO = [1, 2, 4, 8]
RANKS = [1, 2, 4, 8]
ONE_BY_ONE, COMPETING = "topk(scores), one by one", "accumulate(A)"
LOCAL, GLOBAL = "each rank's own rows", "rows of all ranks compete"
Rows = list[dict[str, Any]]


# --- rows ---------------------------------------------------------------------------------------


def of_scores(rows: int, line: Line, around: Callable = contextlib.nullcontext) -> Run:
    """A loss of ``rows`` scores and its backward, over and over for a few milliseconds."""
    parameter = nn.Parameter(torch.randn(rows, 1))
    repeats = max(1, 4096 // rows)
    steps = Steps("tiny", "cpu", 1)

    def run() -> float:
        start = steps.now()
        for _ in range(repeats):
            parameter.grad = None
            with around():
                scores = line(parameter * 1)
            softplus(-scores).mean().backward()
            if isinstance(line, TopK):
                line.step()
        return (steps.now() - start) / repeats

    return run


def rows_arms() -> Arms:
    competing = {rows: half() for rows in ROWS}
    return {
        f"B {rows}": {
            NOTHING: of_scores(rows, plain),
            HAND: of_scores(rows, by_hand),
            "topk(scores)": of_scores(rows, half()),
            "accumulate(1)": of_scores(
                rows, competing[rows], functools.partial(competing[rows].accumulate, 1)
            ),
        }
        for rows in ROWS
    }


def show_growth(found: Rows, console: Console) -> None:
    """Time beyond a loss without top-k, by B log B: a cost O(B log B) does not grow there."""
    table = Table(title="nanoseconds more than without top-k, by B log2 B")
    arms = [HAND, "topk(scores)", "accumulate(1)"]
    for column in ("B", *arms):
        table.add_column(column)
    by_name = {(row["kind"], row["arm"]): row for row in found}
    for rows in ROWS:
        more = [by_name[f"B {rows}", arm]["us more"] for arm in arms]
        scale = 1e3 / (rows * math.log2(rows))
        cells = [
            f"{one[0] * scale:.2f} [{one[1] * scale:.2f}, {one[2] * scale:.2f}]" for one in more
        ]
        table.add_row(str(rows), *cells)
    console.print(table)


# --- micro-batches ------------------------------------------------------------------------------


class Parts(Steps):
    """Generator steps in ``parts`` micro-batches."""

    def __init__(self, parts: int) -> None:
        super().__init__("mlp", "cpu", 1)
        self.parts = parts

    def run(self, line: Line, together: bool = False) -> Run:
        """Backward by backward, or once for all."""

        def run() -> float:
            start = self.now()
            self.step(line, together)
            seconds = self.now() - start
            if isinstance(line, TopK):
                unlisten(line.ledger)
            return seconds

        return run

    def step(self, line: Line, together: bool) -> None:
        self.generator.zero_grad()
        self.critic.zero_grad()
        parts = self.noise().chunk(self.parts)
        if together:
            assert isinstance(line, TopK)
            with line.accumulate(self.parts):
                losses = [self.loss(line, part) / self.parts for part in parts]
            sum(losses).backward()
        else:
            for part in parts:
                (self.loss(line, part) / self.parts).backward()
        self.optimizer.step()

    def held(self, line: Line, together: bool = False) -> float:
        """MiB that autograd holds at a time, at most; what several nodes hold counts once."""
        sizes: Counter[tuple[int, int]] = Counter()  # how often each piece of memory is held
        most = 0

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal most
                memory = tensor.untyped_storage()
                self.tensor, self.piece = tensor, (memory.data_ptr(), memory.nbytes())
                sizes[self.piece] += 1
                most = max(most, sum(size for (_, size), n in sizes.items() if n))

            def __del__(self) -> None:
                sizes[self.piece] -= 1

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            self.step(line, together)
        return most / 2**20


def micro_arms() -> tuple[Arms, dict[int, tuple[float, float]]]:
    arms, held = {}, {}
    for number in MICRO:
        parts = Parts(number)
        arms[f"A {number}"] = {
            NOTHING: parts.run(plain),
            HAND: parts.run(by_hand),
            ONE_BY_ONE: parts.run(half()),
            COMPETING: parts.run(half(), together=True),
        }
        held[number] = parts.held(half()), parts.held(half(), together=True)
    return arms, held


def show_held(held: dict[int, tuple[float, float]], console: Console) -> None:
    table = Table(title="MiB that autograd holds at a time, at most")
    for column in ("micro-batches", "one by one", "competing"):
        table.add_column(column)
    for number, (apart, together) in held.items():
        table.add_row(str(number), f"{apart:.2f}", f"{together:.2f}")
    console.print(table)


# --- ranks --------------------------------------------------------------------------------------


def rank(number: int, size: int, model: str, rounds: int, threads: int, folder: str) -> None:
    """What one of the ranks does; the first writes what it measured."""
    torch.set_num_threads(threads)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=size)
    random.seed(0)  # all ranks take the arms in one order
    steps = Steps(model, "cpu", 1)
    if model == "tiny":
        steps.shape = (64, 2)
    steps.generator = DistributedDataParallel(steps.generator)
    gathers = 0
    gather = dist.all_gather

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal gathers
        gathers += 1
        return gather(*args, **kwargs)

    dist.all_gather = counted
    of_all = half(scope="global")
    run = steps.by_line(of_all)
    for _ in range(2):  # the first asks how many rows there are
        before = gathers
        run()
    of_step = gathers - before
    name = f"{size} ranks, {of_step} all-gather{'s' * (of_step != 1)}"
    arms = {
        name: {
            NOTHING: steps.by_line(plain),
            HAND: steps.by_line(half()),  # the baseline is top-k on each rank
            GLOBAL: run,
        }
    }
    console = Console(quiet=bool(number), width=130)
    found = measured(arms, rounds, console, warm=3)
    for row in found:
        row["arm"] = LOCAL if row["arm"] == HAND else row["arm"]
        row["model"], row["gathers"] = model, of_step
        row[f"/ {LOCAL}"] = row.pop(f"/ {HAND}")
    if not number:
        Path(folder, "rows.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def over_ranks(size: int, model: str, rounds: int, threads: int) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, model, rounds, threads, folder)
        mp.start_processes(rank, arguments, nprocs=size, start_method="spawn")
        return json.loads(Path(folder, "rows.json").read_text())


def show_ranks(model: str, found: Rows, console: Console) -> None:
    table = Table(title=f"{model}: generator step, {found[0]['rounds']} interleaved rounds")
    columns = {f"/ {LOCAL}": "{:.3f}", f"/ {NOTHING}": "{:.3f}"}
    for column in ("arm", "median ms", *columns):
        table.add_column(column)
    for row in found:
        cells = [
            "{} [{}, {}]".format(*(form.format(number) for number in row[column]))
            for column, form in columns.items()
        ]
        table.add_row(f"{row['arm']}, {row['kind']}", f"{row['ms']:.2f}", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--slow", type=int, default=20, help="rounds of the DCGAN on two ranks")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--json", type=Path, help="where the numbers are written, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    console = Console(width=130)
    where = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads a process"
    console.print(f"torch {torch.__version__}, {where}")
    of_rows = measured(rows_arms(), options.rounds, console)
    show("scores alone", of_rows, console)
    show_growth(of_rows, console)
    arms, held = micro_arms()
    of_micro = measured(arms, options.rounds, console)
    show("mlp in A micro-batches", of_micro, console)
    show_held(held, console)
    of_ranks: Rows = []
    for size in RANKS:
        of_ranks += over_ranks(size, "tiny", options.rounds, options.threads)
    show_ranks("small MLP", of_ranks, console)
    of_dcgan = over_ranks(2, "dcgan", options.slow, options.threads)
    show_ranks("dcgan", of_dcgan, console)
    if options.json:
        found = {"rows": of_rows, "micro-batches": of_micro, "ranks": of_ranks + of_dcgan}
        options.json.write_text(json.dumps(found | {"MiB held": held}, indent=1))


if __name__ == "__main__":
    assert {"tiny", "mlp", "dcgan"} <= {*MODELS}
    main()
