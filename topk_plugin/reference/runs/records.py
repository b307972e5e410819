"""What a run is made of: members, jobs, the rows that they leave, and what a trainer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

Row = dict[str, Any]
"""One line of a ``metrics.jsonl``: cell, arm, seed, iteration, kind, and what was measured."""

Tell = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


class Member(NamedTuple):
    """One training of one pair of networks."""

    cell: int  # what a row of the paper's table is: a number of modes, a held-out digit
    arm: str
    seed: int


class Training(Protocol):
    """One job in training; what ``Training`` of each trainer does."""

    iterations: int
    iteration: int

    def advance(self, until: int) -> None:
        """Trains up to that iteration, at most to the last one."""

    def measure(self) -> list[Row]:
        """Rows at the present iteration, without a trace in what follows."""

    def state_dict(self) -> dict[str, Any]:
        """All that the rest depends on, for ``torch.load(weights_only=True)``."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""


@runtime_checkable
class Draws(Protocol):
    """A training that leaves pictures, too."""

    def files(self) -> Mapping[str, bytes]:
        """Files for the job's folder at the present iteration, by name."""


class Job(NamedTuple):
    """What one process trains at a time."""

    folder: Path
    trainer: str  # module of topk_plugin.reference
    settings: Any
    members: list[Member]
    device: str
    tensorboard: bool = False  # whether rows are also logged for TensorBoard
