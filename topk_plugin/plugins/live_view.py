"""A plugin that shows what top-k does while a run trains: k, thresholds, scores, classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import distributed

from topk_plugin.errors import ConfigError
from topk_plugin.hooks import Selection, hookimpl
from topk_plugin.plugins.figures import Figures, figures

EVERY = 100
"""Generator steps between two looks at the device."""

FEW = 20
"""Classes of which each has a curve of its own."""


class LiveView:
    """Tells what top-k did, every so many generator steps; nothing waits for the device between.

    ::

        view = LiveView.to_tensorboard("runs/1")  # or .to_wandb(), or LiveView(print)
        topk = TopK(gamma=0.99, nu=0.5, hooks=[view])
        ...
        view.close()  # the steps since it told last

    It tells k, the threshold, the mean scores of kept and dropped rows and histograms of both, and
    what share of each class's rows was kept: whether top-k starves classes. Classes are known where
    an attached critic gets their labels as integers (B,) beside the samples, ``critic(x, y)``; of
    ``topk(scores)`` they are not, nor where they are embedded or one-hot before.

    Of the ranks of one training the first tells, of its own rows.

    Args:
        tell: called with :class:`~topk_plugin.plugins.figures.Figures`.
        every: generator steps, at least 1.

    Raises:
        ConfigError: ``tell`` cannot be called, or ``every`` is out of its range.
    """

    def __init__(self, tell: Callable[[Figures], Any], every: int = EVERY) -> None:
        if not callable(tell):
            raise ConfigError(f"LiveView: found {tell!r}, expected a function of Figures")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ConfigError(f"LiveView: found every={every!r}, expected a whole number >= 1")
        self._tell, self._every = tell, every
        self._untold: list[Selection] = []
        self._process = os.getpid()

    @classmethod
    def to_tensorboard(cls, folder: str | Path, every: int = EVERY) -> LiveView:
        """Into event files for TensorBoard.

        Args:
            folder: for the files; a process that another one of the run started writes into a
                folder of its own in it.

        Raises:
            ConfigError: tensorboard is not installed, the folder cannot be made, or ``every`` is
                out of its range.
        """
        return cls(_TensorBoard(Path(folder)), every)

    @classmethod
    def of_child(cls, folder: Path) -> LiveView:
        """The same in a process that another one started which writes into ``folder``.

        Raises:
            ConfigError: as :meth:`to_tensorboard`.
        """
        return cls(_TensorBoard(folder, child=True))

    @classmethod
    def to_wandb(cls, every: int = EVERY) -> LiveView:
        """Into the run of Weights & Biases that is open when there is something to tell.

        The numbers go with what the script logs next, so that its steps stay as they are; while no
        run is open they are dropped.

        Raises:
            ConfigError: wandb is not installed, or ``every`` is out of its range.
        """
        return cls(_WandB(), every)

    @hookimpl
    def topk_selected(self, selection: Selection) -> None:
        """Keeps a step's ``selection``; every so many it tells of them."""
        if os.getpid() != self._process:  # a fork: the steps so far are the other one's
            self._process = os.getpid()
            self._untold.clear()
        self._untold.append(selection)
        if len(self._untold) >= self._every:
            self.close()

    def close(self) -> None:
        """Tells of the steps since it last did; there may be more afterwards."""
        steps, self._untold = self._untold, []
        if _first():
            for _, of_one in groupby(steps, key=lambda step: step.training):
                self._tell(figures([*of_one]))


def _first() -> bool:
    """Whether this is the first of the ranks that train together, or alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def scalars(found: Figures) -> dict[str, float]:
    """The figures that are one number each, by the names that they are shown by."""
    numbers = {
        "k": found.k,
        "batch": found.batch,
        "threshold": found.threshold,
        "kept score": found.kept_score,
        "dropped score": found.dropped_score,
        "non-finite scores": float(found.nonfinite),
        "epoch": float(found.epoch),
    }
    if found.classes:
        shares = [one.share for one in found.classes.values()]
        numbers |= {
            "classes/least share kept": min(shares),
            "classes/greatest share kept": max(shares),
            "classes/without a kept row": float(found.starved),
        }
    if len(found.classes) <= FEW:
        numbers |= {f"classes/kept of {name}": one.share for name, one in found.classes.items()}
    shown = {name: number for name, number in numbers.items() if number == number}
    return {f"{_prefix(found)}{name}": number for name, number in shown.items()}


def histograms(found: Figures) -> dict[str, tuple[list[float], list[int]]]:
    """The edges and counts of scores of rows that were kept and dropped, by their names."""
    if found.histogram is None:
        return {}
    edges, kept, dropped = found.histogram
    both = {"kept": kept, "dropped": dropped}
    return {
        f"{_prefix(found)}scores/{name}": (edges, counts)
        for name, counts in both.items()
        if any(counts)
    }


def _prefix(found: Figures) -> str:
    return "top-k/" if found.training == 1 else f"top-k {found.training}/"


class _TensorBoard:
    """Writes figures into a folder, in each process by a writer of its own.

    Args:
        child: this process was started by another one that writes there.
    """

    def __init__(self, folder: Path, child: bool = False) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"--tensorboard: found no package tensorboard ({error}), expected it to be "
                "installed: pip install tensorboard. Or leave the flag out."
            ) from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--tensorboard: cannot make the folder {folder}: {error.strerror}; give another"
            ) from None
        self._make: Callable[[str], Any] = SummaryWriter
        self._folder, self._first = folder.absolute(), 0 if child else os.getpid()
        self._process, self._writer = 0, None

    def __call__(self, found: Figures) -> None:
        if self._process != os.getpid():  # a fork has no thread that writes
            self._process = os.getpid()
            own = "" if self._process == self._first else f"process-{self._process}"
            self._writer = self._make(str(self._folder / own))
        writer: Any = self._writer
        for name, number in scalars(found).items():
            writer.add_scalar(name, number, found.step)
        for name, (edges, counts) in histograms(found).items():
            middles = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
            moments = [
                sum(n * x**power for n, x in zip(counts, middles, strict=True)) for power in (1, 2)
            ]
            writer.add_histogram_raw(
                name, edges[0], edges[-1], sum(counts), *moments, edges[1:], counts, found.step
            )
        writer.flush()  # nobody may close it


class _WandB:
    """Gives figures to the run that is open."""

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"--wandb: found no package wandb ({error}), expected it to be installed: pip "
                "install wandb. Or leave the flag out."
            ) from None
        self._wandb: Any = wandb

    def __call__(self, found: Figures) -> None:
        run = self._wandb.run
        if run is None:
            return
        shown: dict[str, Any] = dict(scalars(found))
        for name, (edges, counts) in histograms(found).items():
            shown[name] = self._wandb.Histogram(np_histogram=(counts, edges))
        run.log(shown, commit=False)
