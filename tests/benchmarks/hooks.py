"""What plugins cost a generator step of torch-mimicry's SN-GAN.

    pip install --no-deps torch-mimicry==0.1.16
    python tests/benchmarks/hooks.py [--rounds 100] [--threads N] [--width 64] [--batch 64]

First each hook call by itself: what it takes beyond the plugin's own function, the checks of the
result included, beside pluggy's own call, which checks nothing. Then whole steps, mimicry's
train_step, in interleaved rounds as in overhead.py: a TopK without plugins calls the built-in
selection directly, and one with plugins reaches the same selection through the hooks, asks for the
scores, and tells an observer.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch
from overhead import bootstrap
from rich.console import Console
from rich.progress import track
from rich.table import Table

from topk_plugin import TopK, hookimpl
from topk_plugin.core.choice import TALLY_SIZE
from topk_plugin.core.counts import StepTally
from topk_plugin.core.ranking import kept_rows
from topk_plugin.hooks import Selection
from topk_plugin.plugins.calls import first_result, observe
from topk_plugin.plugins.manager import plugin_manager
from topk_plugin.upstream.known import adapters
from topk_plugin.upstream.stubs import Stubs

BOUND = 0.01
"""Of a generator step, what the hook calls in it may take."""


class SameSelection:
    """What is built in, by the long way round."""

    @hookimpl
    def topk_scores(self, output):
        return output

    @hookimpl
    def topk_select(self, scores, k):
        return kept_rows(scores, k)


class Observer:
    @hookimpl
    def topk_selected(self, selection):
        self.latest = selection


class Trivial(Observer):
    """Returns what it was given, so that only the way to it is measured."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    @hookimpl
    def topk_scores(self, output):
        return output

    @hookimpl
    def topk_select(self, scores, k):
        return self.mask


def calls(batch: int) -> dict[str, tuple[float, float]]:
    """Seconds beyond the function's own: by the resolved call, and by pluggy's."""
    scores, k = torch.randn(batch, 1), torch.tensor(float(batch // 2))
    tally = torch.zeros(TALLY_SIZE)
    plugin = Trivial(torch.ones(batch, dtype=torch.bool))
    manager = plugin_manager(plugins=[plugin])
    rows = scores.flatten()
    arguments: dict[str, dict[str, Any]] = {
        "topk_scores": {"output": scores},
        "topk_select": {"scores": rows, "k": k},
        "topk_selected": {"selection": Selection(1, 0, batch, StepTally(tally, []), ())},
    }

    def seconds(function: Callable[..., Any], given: dict[str, Any]) -> float:
        timer = timeit.Timer(lambda: function(**given))
        return min(timer.repeat(repeat=20, number=2000)) / 2000

    found = {}
    for hook, given in arguments.items():
        resolve = observe if hook == "topk_selected" else first_result
        own = seconds(getattr(plugin, hook), given)
        resolved = resolve(manager, hook)
        assert resolved is not None
        found[hook] = (
            seconds(resolved, given) - own,
            seconds(getattr(manager.hook, hook), given) - own,
        )
    return found


def arms(width: int, batch: int) -> dict[str, Callable[[], None]]:
    """One generator step each way, on the same networks."""
    Stubs(adapters()["mimicry"]).install()
    from torch_mimicry.nets import sngan
    from torch_mimicry.training.metric_log import MetricLog

    generator, critic = sngan.SNGANGenerator32(ngf=width), sngan.SNGANDiscriminator32(ndf=width)
    optimizer = torch.optim.Adam(generator.parameters(), 2e-4, (0.0, 0.9))
    images = torch.rand(batch, 3, 32, 32)
    loss = generator.compute_gan_loss

    def step(gate: Callable[[Any], Any]) -> Callable[[], None]:
        def run() -> None:
            generator.compute_gan_loss = lambda output: loss(gate(output))
            generator.train_step(
                real_batch=(images, None),
                netD=critic,
                optG=optimizer,
                log_data=MetricLog(),
                device=torch.device("cpu"),
            )

        return run

    def half(*plugins: Any) -> TopK:
        topk = TopK(gamma=0.5, nu=0.5, hooks=plugins)
        topk.end_epoch()
        return topk

    return {
        "no top-k": step(lambda output: output),
        "top-k": step(half()),
        "top-k, an observer": step(half(Observer())),
        "top-k by three hooks": step(half(SameSelection(), Observer())),
    }


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm in each round, in random order; three more rounds warm up."""
    times: dict[str, list[float]] = {arm: [] for arm in steps}
    for round_ in track(range(-3, rounds), description="steps"):
        for arm in random.sample(list(steps), len(steps)):
            start = time.perf_counter()
            steps[arm]()
            if round_ >= 0:
                times[arm].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--width", type=int, default=64, help="ngf and ndf (mimicry: 256, 128)")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    console = Console(width=110)
    console.print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads; "
        f"SN-GAN 32x32, ngf = ndf = {options.width}, batch {options.batch}"
    )
    alone = calls(options.batch)
    times = interleaved(arms(options.width, options.batch), options.rounds)
    medians = {arm: statistics.median(mine) for arm, mine in times.items()}

    table = Table("hook", "us a call", "of a step", "by pluggy's call, us", title="hook calls")
    total = [sum(column) for column in zip(*alone.values(), strict=True)]
    for hook, (resolved, pluggys) in {**alone, "all three": total}.items():
        share = resolved / medians["top-k"]
        table.add_row(hook, f"{1e6 * resolved:.2f}", f"{share:.5%}", f"{1e6 * pluggys:.2f}")
    console.print(table)

    table = Table("arm", "median ms", "/ top-k", title=f"steps, {options.rounds} rounds")
    for arm, mine in times.items():
        ratios = [a / b for a, b in zip(mine, times["top-k"], strict=True)]
        low, high = bootstrap(ratios)
        ratio = f"{statistics.median(ratios):.4f} [{low:.4f}, {high:.4f}]"
        table.add_row(arm, f"{1e3 * medians[arm]:.1f}", ratio)
    console.print(table)
    share = total[0] / medians["top-k"]
    console.print(f"hook calls: {share:.4%} of a step, at most {BOUND:.0%}: {share <= BOUND}")


if __name__ == "__main__":
    main()
