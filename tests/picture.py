"""Draws whose rows compete: ``python tests/picture.py`` writes the page's picture anew.

Which rows are kept is asked of the package, for two ranks with two micro-batches each; the file
carries the answer, so that a test can ask again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from topk_plugin.core.choice import GateState, gate_numbers
from topk_plugin.core.contest import Contest, Contestant, Gathered
from topk_plugin.core.direction import Direction
from topk_plugin.core.progress import EpochCount

FILE = Path(__file__).parents[1] / "topk_plugin" / "core" / "whose-rows.png"
FRACTION = 0.5
SCORES = [
    [[2.2, 1.8, 1.0, 0.3], [1.2, -0.1, -0.8, -1.5]],
    [[0.7, -0.5, -1.1, -2.0], [0.9, 0.5, -0.3, -2.3]],
]
"""Of each micro-batch of each rank; no two of the four answers are alike."""

SCOPES = {
    "the default: each call": (False, False),
    "accumulate(2)": (False, True),
    'scope="global"': (True, False),
    'scope="global", accumulate(2)': (True, True),
}
"""Whether the rows of all ranks compete, and those of all micro-batches."""


class Others(NamedTuple):
    """Ranks of which it is known what they send."""

    rows: list[list[float]]
    rank: int

    @property
    def size(self) -> int:
        return len(self.rows)

    def gather(self, rows: Tensor, lean: Tensor, fraction: float) -> Gathered:
        table = torch.tensor(self.rows, dtype=torch.float64)
        sizes = torch.full((len(table),), table.shape[1], dtype=torch.float64)
        kept = torch.tensor(fraction, dtype=torch.float64)
        return Gathered(table, sizes, lean.expand(len(table)), kept, self.rank)


def kept(ranks: bool, batches: bool) -> list[list[list[float]]]:
    """The weight of each row of each micro-batch of each rank; 0 where it is dropped."""
    vote, progress = Direction("high"), EpochCount(lambda epoch, steps: FRACTION, 0)
    state = GateState(gate_numbers(FRACTION), vote.low)
    found = []
    for rank, own in enumerate(SCORES):
        weights: list[list[float]] = []
        groups = [own] if batches else [[one] for one in own]
        for number, group in enumerate(groups):
            sent = [sum(all_ if batches else all_[number : number + 1], []) for all_ in SCORES]
            contest = Contest(len(group), Others(sent, rank) if ranks else None)
            calls = [Contestant(contest, torch.tensor(one), progress, state, True) for one in group]
            one = torch.ones(len(group[0]))
            weights += [call.choose([-one]).keep(one).tolist() for call in calls]
        found.append(weights)
    return found


def draw(path: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure, panels = pyplot.subplots(1, len(SCOPES), figsize=(11, 3.6), sharey=True)
    answer = {}
    for panel, (name, (ranks, batches)) in zip(panels, SCOPES.items(), strict=True):
        answer[name] = weights = kept(ranks, batches)
        columns = [(rank, batch) for rank in (0, 1) for batch in (0, 1)]
        groups: dict[tuple[int, int], list[int]] = {}
        for x, (rank, batch) in enumerate(columns):
            groups.setdefault((0 if ranks else rank, 0 if batches else batch), []).append(x)
            for score, weight in zip(SCORES[rank][batch], weights[rank][batch], strict=True):
                face = "tab:blue" if weight else "white"
                panel.plot(x, score, "o", ms=9, mfc=face, mec="tab:blue")
        for number, places in enumerate(groups.values()):
            colour = f"C{number + 1}"
            for x in places:
                corner, shape = (x - 0.22, -2.6), "round,pad=0.08"
                panel.add_patch(FancyBboxPatch(corner, 0.44, 5.1, shape, ec=colour, fc="none"))
            for left, right in zip(places, places[1:], strict=False):
                panel.plot([left + 0.3, right - 0.3], [2.9 + 0.25 * number] * 2, color=colour)
                for x in (left + 0.3, right - 0.3):
                    panel.plot([x, x], [2.6, 2.9 + 0.25 * number], color=colour)
        panel.set_title(name, fontsize=10)
        labels = [f"rank {rank}\nbatch {batch}" for rank, batch in columns]
        panel.set_xticks(range(4), labels, fontsize=7)
        panel.set(xlim=(-0.6, 3.6), ylim=(-3, 3.5))
    panels[0].set_ylabel("score")
    figure.text(0.5, 0.01, "filled: kept, k = half of the rows that compete; boxes of one colour "
                "compete", ha="center", fontsize=9)  # fmt: skip
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Description": json.dumps(answer), "Software": None})


if __name__ == "__main__":
    draw(FILE)
