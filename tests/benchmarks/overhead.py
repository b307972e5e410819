"""What top-k costs a generator step, as ratios of interleaved pairs.

    python tests/benchmarks/overhead.py [--rounds 200] [--threads N] [--model dcgan] [--model mlp]
        [--model sndcgan] [--device cuda] [--steps 20] [--made compiled] [--arm "line A"]
        [--json FILE]
    python tests/benchmarks/overhead.py --host

Every round runs each arm once, in random order, on the same networks and noise. A row is the
median over rounds of (time of the arm / time of the baseline in the same round) with a 95%
bootstrap interval. k is half the batch. Each arm is a whole generator step: noise, generator,
critic, loss, backward, Adam; or several in a row, as they follow each other on a GPU. The vote on
the direction is over, as it is but for the first hundred steps of a training. The shielded gate is
used where a generator step cannot be known in advance; it runs the critic's backward to its input
twice where the critic's rows act on each other, as in the DCGAN's BatchNorm, until it was learned
that the loop throws the critic's gradient away there; of the MLP's critic nothing need be learned,
nor of one with spectral norms (sndcgan). A step is timed after one like it, as in a training.

Steps are made eagerly, by torch.compile, or captured in a CUDA graph: all of it but Adam's step,
and top-k's counting, which a replay does not do.

With --host the networks are so small that nearly all of a step is Python and the launching of
operations, on one thread, and what counts is the processor time that is added.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from topk_plugin import TopK, attach
from topk_plugin.core.optimizers import unlisten
from topk_plugin.loop import place

Line = Callable[[torch.Tensor], torch.Tensor]
Run = Callable[[], float]  # the seconds of a step


def dcgan(spectral: bool = False) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """32x32 DCGAN of width 64, batch 64; noise (B, 128, 1, 1).

    Args:
        spectral: the critic has spectral norms in place of BatchNorm, so its rows are apart.
    """

    def up(n: int, m: int, first: bool = False) -> list[nn.Module]:
        place = {"stride": 1, "padding": 0} if first else {"stride": 2, "padding": 1}
        return [nn.ConvTranspose2d(n, m, 4, bias=False, **place), nn.BatchNorm2d(m), nn.ReLU(True)]

    def down(n: int, m: int) -> list[nn.Module]:
        conv = nn.Conv2d(n, m, 4, 2, 1, bias=spectral)
        normed = [spectral_norm(conv)] if spectral else [conv, nn.BatchNorm2d(m)]
        return [*normed, nn.LeakyReLU(0.2, True)]

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


def tiny() -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Three linear layers of 16, batch 8; noise (B, 2)."""

    def net(out: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, out)
        )

    return net(2), net(1), (8, 2)


MODELS = {"dcgan": dcgan, "sndcgan": partial(dcgan, True), "mlp": mlp, "tiny": tiny}


def half(**settings: str | bool) -> TopK:
    """Keeps half of a batch."""
    topk = TopK(gamma=0.5, nu=0.5, direction="high", **settings)
    topk.end_epoch()
    return topk


def plain(scores: torch.Tensor) -> torch.Tensor:
    return scores


def by_hand(scores: torch.Tensor) -> torch.Tensor:
    return scores.flatten().topk(len(scores) // 2).values


class Steps:
    """Generator steps each way on the same networks.

    Args:
        model: of MODELS.
        steps: that are timed together.
        clock: in seconds.
    """

    def __init__(
        self, model: str, device: str, steps: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        generator, critic, self.shape = MODELS[model]()
        self.generator, self.critic = generator.to(device), critic.to(device)
        self.optimizer = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999))
        self.device, self.steps, self._clock = device, steps, clock

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self._clock()

    def noise(self) -> torch.Tensor:
        return torch.randn(self.shape, device=self.device)

    def loss(self, line: Line, z: torch.Tensor) -> torch.Tensor:
        return softplus(-line(self.critic(self.generator(z)))).mean()

    def timed(
        self,
        loss: Callable[[torch.Tensor], torch.Tensor],
        around: Callable = contextlib.nullcontext,
    ) -> float:
        """Seconds of a step."""
        start = self.now()
        for _ in range(self.steps):
            self.generator.zero_grad()
            self.critic.zero_grad()
            with around():
                loss(self.noise()).backward()
            self.optimizer.step()
        return (self.now() - start) / self.steps

    def by_line(self, line: Line, loss: Callable | None = None) -> Run:
        """With ``line`` on the scores; ``loss``: that has it in it already."""
        found = loss or partial(self.loss, line)

        def run() -> float:
            self.timed(found)  # as in a training, a step like it went before; now it is listened
            seconds = self.timed(found)
            if isinstance(line, TopK):  # the other arms' optimizers have nobody to tell
                unlisten(line.ledger)
            return seconds

        return run

    def attached(
        self, marked: bool = False, spare: bool = False, loss: Callable | None = None,
        critic: nn.Module | None = None, learn: bool = True, **settings: str,
    ) -> Run:  # fmt: skip
        """With an attached ``critic``."""
        topk, begun = half(spare=learn, **settings), []
        loss = loss or partial(self.loss, plain)
        around = partial(topk.generator_step, spare) if marked else contextlib.nullcontext

        def run() -> float:
            with attach(critic or self.critic, topk):
                # other things are looked at in the first steps, and in those after attaching
                # whether the critic's rows act on each other, and where it is called
                for _ in range((6 if begun else 60) // self.steps + 2):
                    seconds = self.timed(loss, around)
                begun.append(True)
            return seconds  # without attaching and removing

        return run

    def frozen(self, run: Run) -> Run:
        """No gradient for the critic's parameters."""

        def frozen() -> float:
            self.critic.requires_grad_(False)
            seconds = run()
            self.critic.requires_grad_(True)
            return seconds

        return frozen

    def captured(self, line: Line) -> Run:
        """The step's forward and backward replayed from a CUDA graph."""
        z = self.noise()
        parameters = [*self.generator.parameters(), *self.critic.parameters()]
        mine = isinstance(line, TopK)
        if mine:
            line.to(self.device)

        def backward() -> None:
            z.normal_()
            self.loss(line, z).backward()

        def zero() -> None:
            for parameter in parameters:
                parameter.grad = None

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                zero()
                backward()
        torch.cuda.current_stream().wait_stream(side)
        zero()  # so that the graph's backward writes gradients, and adds to none
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            backward()
        gradients = [parameter.grad for parameter in parameters]  # the graph's own memory

        def run() -> float:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            start = self.now()
            for _ in range(self.steps):
                graph.replay()
                self.optimizer.step()
                if mine:
                    line.step()
            seconds = (self.now() - start) / self.steps
            zero()
            if mine:
                unlisten(line.ledger)
            return seconds

        return run


NOTHING, HAND = "nothing", "gather by hand"
Arms = dict[str, dict[str, Run]]
"""By what they are compared with: steps that are alike but for top-k."""


def eager(steps: Steps) -> Arms:
    return {
        "": {
            NOTHING: steps.by_line(plain),
            HAND: steps.by_line(by_hand),
            "line A, topk(scores)": steps.by_line(half()),
            "attach, marked step (score gate)": steps.attached(marked=True),
            "attach, marked step, critic spared": steps.attached(marked=True, spare=True),
            "attach, gate=score": steps.attached(gate="score"),
            "attach, nothing known (shielded)": steps.attached(learn=False),
            "attach, nothing known, learned": steps.attached(),
        },
        "critic frozen": {
            NOTHING: steps.frozen(steps.by_line(plain)),
            HAND: steps.frozen(steps.by_line(by_hand)),
            "attach (score gate)": steps.frozen(steps.attached()),
        },
    }


def compiled(steps: Steps, backend: str = "inductor") -> Arms:
    def whole(line: Line) -> Run:
        loss = torch.compile(partial(steps.loss, line), fullgraph=True, backend=backend)
        return steps.by_line(line, loss)

    generator, critic = (
        torch.compile(network, backend=backend) for network in (steps.generator, steps.critic)
    )

    def loss(z: torch.Tensor) -> torch.Tensor:
        return softplus(-critic(generator(z))).mean()

    return {
        "step compiled": {
            NOTHING: whole(plain),
            HAND: whole(by_hand),
            "line A, topk(scores)": whole(half()),
        },
        "networks compiled": {
            NOTHING: steps.by_line(plain, loss),
            "attach, marked step (score gate)": steps.attached(True, loss=loss, critic=critic),
            "attach, nothing known (shielded)": steps.attached(loss=loss, critic=critic),
        },
    }


def graph(steps: Steps) -> Arms:
    return {
        "CUDA graph": {
            NOTHING: steps.captured(plain),
            HAND: steps.captured(by_hand),
            "line A, topk(scores)": steps.captured(half()),
        }
    }


MADE: dict[str, Callable[..., Arms]] = {"eager": eager, "compiled": compiled, "graph": graph}
"""How the steps are made."""


def only(arms: Arms, wanted: Sequence[str] | None) -> Arms:
    """Those whose names hold one of ``wanted``, and what they are compared with."""
    if wanted is None:
        return arms
    found: Arms = {}
    for kind, of_kind in arms.items():
        named = {arm for arm in of_kind if any(part in f"{arm}, {kind}" for part in wanted)}
        if named:
            found[kind] = {a: r for a, r in of_kind.items() if a in named | {NOTHING, HAND}}
    return found


def bootstrap(ratios: list[float], rounds: int = 2000) -> tuple[float, float]:
    """95% interval of the median."""
    medians = sorted(
        statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(rounds)
    )
    return medians[int(0.025 * rounds)], medians[int(0.975 * rounds)]


def estimate(values: list[float]) -> list[float]:
    """Their median, and its 95% interval."""
    return [statistics.median(values), *bootstrap(values)]


def measured(
    arms: Arms, rounds: int, console: Console, seconds: float = float("inf"), warm: int = 10
) -> list[dict[str, Any]]:
    """Time all arms, in interleaved rounds.

    Args:
        rounds: at most.
        seconds: after which no further round begins, once there were ten that count.
        warm: rounds before, that do not count.
    """
    runs = {(kind, arm): run for kind, of_kind in arms.items() for arm, run in of_kind.items()}
    times: dict[tuple[str, str], list[float]] = {arm: [] for arm in runs}
    begun = time.monotonic()
    for round_ in track(range(-warm, rounds), description="rounds", console=console):
        if round_ >= 10 and time.monotonic() - begun > seconds:
            break
        for arm in random.sample(list(runs), len(runs)):
            took = runs[arm]()
            if round_ >= 0:
                times[arm].append(took)
    rows = []
    for (kind, arm), mine in times.items():
        row = {"kind": kind, "arm": arm, "ms": 1e3 * statistics.median(mine), "rounds": len(mine)}
        for base in (HAND, NOTHING):
            if (kind, base) in times:
                pairs = list(zip(mine, times[kind, base], strict=True))
                row[f"/ {base}"] = estimate([a / b for a, b in pairs])
        row["us more"] = estimate([1e6 * (a - b) for a, b in pairs])  # than with nothing
        rows.append(row)
    return rows


def show(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{title}: generator step, {rows[0]['rounds']} interleaved rounds")
    columns = {f"/ {HAND}": "{:.3f}", f"/ {NOTHING}": "{:.3f}", "us more": "{:.0f}"}
    for column in ("arm", "median ms", *columns):
        table.add_column(column)
    for row in rows:
        cells = []
        for column, form in columns.items():
            numbers = [form.format(number) for number in row.get(column, ())]
            cells.append("{} [{}, {}]".format(*numbers) if numbers else "")
        name = ", ".join(filter(None, (row["arm"], row["kind"])))
        table.add_row(name, f"{row['ms']:.2f}", *cells)
    console.print(table)


def measure(
    model: str, made: str, options: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Time all arms of one model and print the table."""
    place.LEARNED = 3  # each round attaches anew
    torch.manual_seed(0)
    random.seed(0)
    clock = time.process_time if options.host else time.perf_counter
    steps = Steps(model, options.device, options.steps, clock)
    with contextlib.ExitStack() as stack:
        arms = MADE[made](steps, **({"backend": options.backend} if made == "compiled" else {}))
        if made == "compiled":  # the first attachment has everything compiled anew, and the last
            stack.callback(attach(nn.Identity(), TopK(enabled=False)).remove)
        rows = measured(only(arms, options.arm), options.rounds, console, options.seconds)
    show(f"{model}, {made}", rows, console)
    return [{"model": model, "made": made, **row} for row in rows]


def chosen(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a table, about")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--arm", action="append", help="only arms that are called so, in part")
    parser.add_argument("--made", action="append", choices=MADE, help="how; eager by default")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=1, help="timed together")
    parser.add_argument("--host", action="store_true", help="processor time of tiny networks")
    parser.add_argument("--json", type=Path, help="where the numbers are written, too")
    options = parser.parse_args(arguments)
    if options.host:
        options.threads, options.model, options.steps = 1, ["tiny"], 50
    return options


if __name__ == "__main__":
    options = chosen()
    torch.set_num_threads(options.threads)
    console = Console(width=130)
    where = f"{platform.machine()}, {options.threads} threads"
    if options.device == "cuda":
        where = f"{torch.cuda.get_device_name()}, {options.steps} steps at a time"
    console.print(f"torch {torch.__version__}, {where}")
    found = []
    for model in options.model or ("dcgan", "mlp"):
        for made in options.made or ("eager",):
            found += measure(model, made, options, console)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
