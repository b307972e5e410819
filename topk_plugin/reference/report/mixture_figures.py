"""Figures of samples on the plane, and of how one update moves them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from topk_plugin.reference.mixture.modes import BINS, grid_modes
from topk_plugin.reference.report.arms import ARMS, called, in_pairs
from topk_plugin.reference.report.figures import COLORS, INK, new_figure
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]


def samples_figure(
    samples: Mapping[tuple[int, str], Sequence[Sequence[float]]], spacing: float, std: float
) -> Figure:
    """Samples on the plane, an arm a row; the circles hold those of high quality.

    Args:
        samples: points (N, 2) by cell (number of modes) and arm.
        spacing, std: of the modes, in the units of the points.
    """
    cells = sorted({cell for cell, _ in samples})
    arms = in_pairs(Member(cell, arm, 0) for cell, arm in samples)
    figure, axes = new_figure(len(arms), len(cells), (3.3, 3.4), sharex="col", sharey="col")
    for number, (arm, across) in enumerate(zip(arms, axes, strict=True)):
        for cell, panel in zip(cells, across, strict=True):
            edge = _modes(panel, cell, spacing, std)
            points = samples.get((cell, arm), ())
            x, y = zip(*points, strict=True) if points else ((), ())
            color = COLORS[number % len(COLORS)]
            panel.plot(x, y, ".", color=color, markersize=2.5, alpha=0.6, markeredgewidth=0)
            panel.set_title(f"{ARMS.get(arm, arm)}, {called(cell, 'modes')}")
            _outside(panel, sum(max(map(abs, point)) > edge for point in points))
        across[0].set_ylabel("y")
    for panel in axes[-1]:
        panel.set_xlabel("x")
    return figure


def movement_figure(
    found: Mapping[tuple[str, int], Summary], quantity: str, updates: Sequence[str]
) -> Figure:
    """Figures 2 and 3: bars over the distance to the nearest mode, whiskers one std over seeds.

    Args:
        found: as :func:`~topk_plugin.reference.report.claims.movement` gives it.
        quantity: the label of the y axis.
        updates: one panel each, from left to right.
    """
    figure, [across] = new_figure(1, len(updates), (4.2, 3.4), sharey="row")
    most = max(point.n for point in found.values())
    for update, panel in zip(updates, across, strict=True):
        points = {b: found[update, b] for b in range(len(BINS)) if (update, b) in found}
        means = [point.mean for point in points.values()]
        color = COLORS[1 if update == "top-k" else 0]
        panel.bar(list(points), means, width=0.7, color=color, alpha=0.85)
        spread = {b: point for b, point in points.items() if point.std is not None}
        panel.errorbar(
            list(spread),
            [point.mean for point in spread.values()],
            yerr=[point.std or 0 for point in spread.values()],
            fmt="none",
            ecolor="0.2",
            capsize=4,
        )
        panel.axhline(0, color=INK, linewidth=0.8)
        panel.set_xticks(range(len(BINS)), BINS)
        panel.set_xlim(-0.6, len(BINS) - 0.4)
        for place in range(len(BINS)):
            n = points[place].n if place in points else 0
            if n < most:  # not all seeds have a sample at this distance
                note = f"{n} seed{'s' * (n != 1)}"
                where: Any = ("data", "axes fraction")
                panel.annotate(note, (place, 1), xycoords=where, ha="center", fontsize=8, color=INK)
        panel.set_title(f"{update} update, {most} seed{'s' * (most > 1)}", pad=14)
        panel.set_xlabel("distance to the nearest mode (std)")
        panel.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    across[0].set_ylabel(quantity)
    return figure


def arrows_figure(
    points: Mapping[str, Sequence[Sequence[float]]], cell: int, spacing: float, std: float
) -> Figure:
    """Figure 4: where one update moves samples on the plane, longer than it is by a stated factor.

    Args:
        points: for each update, one panel each: (N, 4), x, y before the update and its dx, dy.
        cell: number of modes.
        spacing, std: of the modes, in the units of the points.
    """
    lengths = sorted(math.hypot(dx, dy) for drawn in points.values() for _, _, dx, dy in drawn)
    usual = lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0.0
    factor = float(f"{0.45 * spacing / usual:.0e}") if usual else 1.0
    figure, [across] = new_figure(1, len(points), (4.7, 5.2), sharex="row", sharey="row")
    centers = grid(cell, spacing)
    for (update, drawn), panel in zip(points.items(), across, strict=True):
        edge = _modes(panel, cell, spacing, std)
        for toward, color in ((True, COLORS[2]), (False, COLORS[3])):
            some = [arrow for arrow in drawn if (approach(arrow, centers) > 0) == toward]
            name = "toward the nearest mode" if toward else "away from it"
            x, y, dx, dy = zip(*some, strict=True) if some else ((), (), (), ())
            panel.quiver(
                x,
                y,
                [factor * length for length in dx],
                [factor * length for length in dy],
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.004,
                headwidth=4.5,
                headlength=5,
                headaxislength=4.5,
                color=color,
                label=f"{name}: {len(some)} of {len(drawn)}",
                zorder=3,
            )
        panel.set_title(f"{update} update, arrows × {factor:,g}")
        panel.set_xlabel("x")
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
        _outside(panel, sum(max(map(abs, arrow[:2])) > edge for arrow in drawn))
    across[0].set_ylabel("y")
    return figure


def grid(cell: int, spacing: float) -> list[Point]:
    """Centres of ``cell`` modes on a square grid around the origin."""
    return [(x, y) for x, y in grid_modes(cell, spacing).tolist()]


def approach(arrow: Sequence[float], centers: Iterable[Point]) -> float:
    """How far (x, y, dx, dy) moves toward the centre that is nearest to (x, y); below 0: away."""
    x, y, dx, dy = arrow
    target = min(centers, key=lambda center: math.dist(center, (x, y)))
    return math.dist(target, (x, y)) - math.dist(target, (x + dx, y + dy))


def _modes(panel: Axes, cell: int, spacing: float, std: float) -> float:
    """Circles of 4 std around the modes, on equal axes; how far these go from 0."""
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator

    centers = grid(cell, spacing)
    for center in centers:
        panel.add_patch(Circle(center, 4 * std, fill=False, edgecolor="0.5", linewidth=0.7))
    edge = max(map(max, centers)) + 0.75 * spacing
    panel.set_xlim(-edge, edge)
    panel.set_ylim(-edge, edge)
    panel.set_aspect("equal")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return edge


def _outside(panel: Axes, count: int) -> None:
    """Say how many points lie beyond the panel's edge."""
    if count:
        text = f"{count:,} outside"
        panel.text(0.99, 0.99, text, transform=panel.transAxes, ha="right", va="top", fontsize=8)
