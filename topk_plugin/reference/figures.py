"""Figures of the reference experiments, from plain numbers; nothing is drawn on a screen.

Colours are Okabe and Ito's, which the colour-blind can tell apart; arms also differ in line style
and marker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topk_plugin.reference import models
from topk_plugin.reference.extras import needed
from topk_plugin.reference.mixture.modes import grid_modes
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.statistics import BINS, Summary, summary, without_topk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS = {
    "gan": "GAN",
    "top-k": "top-k GAN",
    "bigan": "BiGAN",
    "top-k+bigan": "top-k BiGAN",
    "meg": "MEG",
    "top-k+meg": "top-k MEG",
    **{
        before + name: words + model.title
        for name, model in models.MODELS.items()
        for before, words in (("", ""), ("top-k+", "top-k "))
    },
    **{n: f"gamma {arm.gamma:g}" for n, arm in models.ARMS.items() if arm.gamma is not None},
    **{n: f"nu {arm.nu:g}" for n, arm in models.ARMS.items() if arm.nu is not None},
    "critic": "top-k on the critic (D)",
    "both": "top-k on both (G & D)",
}
"""Arms by their names in the paper; others keep their own."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "oDs^vP"
LINES = ("--", "-")  # in turns, as baseline and top-k come
INK = "0.35"

Point = tuple[float, float]
Series = Mapping[tuple[Member, int], float]
"""A number by member and iteration."""


def curves_figure(panels: Mapping[str, Series], cell_name: str) -> Figure:
    """Learning curves: mean over seeds, and one standard deviation as a band.

    Args:
        panels: for each row of panels its label and the numbers. Cells are columns, arms lines.
        cell_name: what a cell is, such as "modes".
    """
    members = [member for values in panels.values() for member, _ in values]
    cells, arms = sorted({member.cell for member in members}), in_pairs(members)
    size = (3.3, 2.7) if len(cells) < 4 else (2.3, 2.1)
    figure, axes = _figure(len(panels), len(cells), size, sharex="col", sharey="row")
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for (quantity, values), across in zip(panels.items(), axes, strict=True):
        across[0].set_ylabel(quantity)
        for cell, panel in zip(cells, across, strict=True):
            for number, arm in enumerate(arms):
                curve = _curve(values, cell, arm)
                if not curve:
                    continue
                style = {"color": COLORS[number % len(COLORS)], "label": _label(arm, members)}
                _draw_curve(panel, curve, LINES[number % 2], MARKERS[number % len(MARKERS)], style)
            panel.xaxis.set_major_locator(MaxNLocator(5 if len(cells) < 4 else 3))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for cell, panel in zip(cells, axes[0], strict=True):
        panel.set_title(called(cell, cell_name))
    for panel in axes[-1]:
        panel.set_xlabel("iteration")
    _legend(figure)
    return figure


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
    figure, axes = _figure(len(arms), len(cells), (3.3, 3.4), sharex="col", sharey="col")
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
        found: as :func:`~topk_plugin.reference.statistics.movement` gives it.
        quantity: the label of the y axis.
        updates: one panel each, from left to right.
    """
    figure, [across] = _figure(1, len(updates), (4.2, 3.4), sharey="row")
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
    figure, [across] = _figure(1, len(points), (4.7, 5.2), sharex="row", sharey="row")
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


def points_figure(
    panels: Mapping[str, Mapping[Member, float]],
    cell_name: str,
    chance: Mapping[int, float] | None = None,
) -> Figure:
    """Table 2: by cell and arm the mean over seeds, its standard deviation, and the seeds (small).

    Args:
        panels: for each panel its label and one number a member.
        cell_name: what a cell is, such as "held-out digit".
        chance: by cell, what a score that knows nothing gets.
    """
    members = [member for values in panels.values() for member in values]
    cells, arms = sorted({member.cell for member in members}), in_pairs(members)
    columns = min(2, len(panels))
    figure, axes = _figure(math.ceil(len(panels) / columns), columns, (4.9, 3.3))
    flat = [panel for across in axes for panel in across]
    for panel in flat[len(panels) :]:
        panel.set_visible(False)
    for (label, values), panel in zip(panels.items(), flat, strict=False):
        own = [arm for arm in arms if any(member.arm == arm for member in values)]
        for beside, arm in enumerate(own):
            number = arms.index(arm)
            color = COLORS[number % len(COLORS)]
            shift = (beside - (len(own) - 1) / 2) * 0.7 / len(own)
            shown = {}
            for place, cell in enumerate(cells):
                seeds = [value for m, value in values.items() if m[:2] == (cell, arm)]
                if len(seeds) > 1:
                    left = [place + shift - 0.07] * len(seeds)
                    panel.plot(left, seeds, ".", color=color, markersize=5, markeredgewidth=0)
                if point := summary(seeds):
                    shown[place + shift] = point
            panel.errorbar(
                list(shown),
                [point.mean for point in shown.values()],
                yerr=[point.std or 0 for point in shown.values()],
                fmt=MARKERS[number % len(MARKERS)],
                color=color,
                markersize=6,
                capsize=3,
                label=_label(arm, members),
            )
        for place, cell in enumerate(cells):
            if chance and cell in chance:
                ends = (place - 0.45, place + 0.45)
                panel.hlines(chance[cell], *ends, color=INK, linestyle=":", label="chance")
            if place:
                panel.axvline(place - 0.5, color="0.9", linewidth=0.8, zorder=0)
        panel.set_xticks(range(len(cells)), [str(cell) for cell in cells])
        panel.set_xlim(-0.5, len(cells) - 0.5)
        panel.set_ylabel(label)
        panel.set_xlabel(cell_name)
    _legend(figure)
    return figure


def ablation_figure(
    quantity: str,
    panels: Mapping[str, Mapping[str, str]],
    values: Mapping[Member, float],
    shared: tuple[str, str],
    labels: Mapping[str, str],
) -> Figure:
    """Table 5: by arm the mean over seeds, its standard deviation, and the seeds (small).

    Args:
        quantity: the label of the y axis, which is logarithmic where the largest number is more
            than 5 times the smallest.
        panels: for each panel what it varies, and by arm the label of its tick.
        values: one number a member, above 0, cells of one size only.
        shared: the arm that is a line in each panel, with one standard deviation as a band, and
            the one from which the others differ in one thing.
        labels: these two in words.
    """
    baseline, reference = shared
    seeds: dict[str, list[float]] = {}
    for member, value in values.items():
        seeds.setdefault(member.arm, []).append(value)
    known = {arm: summary(of_arm) for arm, of_arm in seeds.items()}
    others = _seeds(len(of_arm) for arm, of_arm in seeds.items() if arm not in shared)
    words = {arm: f"{labels[arm]}, {_seeds([len(seeds[arm])])}" for arm in shared if arm in seeds}
    figure, axes = _figure(1, len(panels), (3.6, 3.4), sharey="row")
    for (varied, ticks), panel in zip(panels.items(), axes[0], strict=True):
        if line := known.get(baseline):
            panel.axhline(line.mean, color=INK, linestyle="--", label=words[baseline])
            ends = line.mean - (line.std or 0), line.mean + (line.std or 0)
            panel.axhspan(*ends, color=INK, alpha=0.15, linewidth=0)
        for place, arm in enumerate(ticks):
            if not (point := known.get(arm)):
                continue
            color = COLORS[arm == reference]
            if point.n > 1:
                left = [place - 0.16] * point.n
                panel.plot(left, seeds[arm], ".", color=color, markersize=5, markeredgewidth=0)
            panel.errorbar(
                place,
                point.mean,
                yerr=point.std,
                fmt=MARKERS[arm == reference],
                color=color,
                markersize=6,
                capsize=3,
                label=words.get(arm, f"others, {others}"),
            )
        panel.set_xticks(range(len(ticks)), list(ticks.values()))
        panel.set_xlim(-0.5, len(ticks) - 0.5)
        panel.set_xlabel(varied)
    axes[0][0].set_ylabel(quantity)
    if max(values.values()) > 5 * min(values.values()):
        _logarithmic(axes[0][0])
    _legend(figure)
    return figure


def models_figure(quantity: str, values: Series) -> Figure:
    """Learning curves, one panel for each model with its two arms; see groups_figure."""
    models = dict.fromkeys(map(without_topk, in_pairs(member for member, _ in values)))
    pairs = {model: {"baseline": model, "top-k": f"top-k+{model}"} for model in models}
    return groups_figure(
        quantity, values, {ARMS.get(model, model): pair for model, pair in pairs.items()}
    )


def groups_figure(quantity: str, values: Series, groups: Mapping[str, Mapping[str, str]]) -> Figure:
    """Learning curves, one panel for each group of arms; bands as in curves_figure.

    Args:
        quantity: the label of the y axis, which is logarithmic.
        values: above 0, cells of one size only.
        groups: for each panel its title, and its arms by their labels, the baseline first. If
            these labels are the same in all panels, they have one legend.
    """
    members = [member for member, _ in values]
    columns = min(3, len(groups))
    labels = list(dict.fromkeys(tuple(group) for group in groups.values()))
    size = (3.6, 2.9) if len(labels) == 1 else (3.6, 3.7)
    figure, axes = _figure(math.ceil(len(groups) / columns), columns, size)
    flat = [panel for across in axes for panel in across]
    for panel in flat[len(groups) :]:
        panel.set_visible(False)
    [cell] = {member.cell for member in members}
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for (title, group), panel in zip(groups.items(), flat, strict=False):
        for number, (label, arm) in enumerate(group.items()):
            if curve := _curve(values, cell, arm):
                style = {"color": COLORS[number], "label": label}
                _draw_curve(panel, curve, LINES[min(number, 1)], MARKERS[number], style)
        own = {m for m in members if m.arm in group.values()}
        seeds = _seeds(len({m for m in own if m.arm == arm}) for arm in {m.arm for m in own})
        panel.set_title(f"{title}, {seeds}")
        panel.set_xlabel("iteration")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        _logarithmic(panel)  # from beginning to end it falls by orders of magnitude
        if len(labels) > 1:
            below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
            panel.legend(**below, ncols=2, frameon=False, fontsize=9)
    for across in axes:
        across[0].set_ylabel(quantity)
    if len(labels) == 1:
        _legend(figure)
    return figure


def sheets_figure(sheets: Mapping[str, Path], labels: Mapping[str, str] = ARMS) -> Figure:
    """Sheets of samples, for each model the baseline's above top-k's; of a model with more arms
    five in a row.

    Args:
        sheets: by arm, a PNG.
        labels: the arms in words.
    """
    arms = in_pairs(Member(0, arm, 0) for arm in sheets)
    models = list(dict.fromkeys(map(without_topk, arms)))
    pairs = [models, [f"top-k+{model}" for model in models]]
    several = not {*arms} <= {*pairs[0], *pairs[1]}
    rows = [arms[n : n + 5] for n in range(0, len(arms), 5)] if several else pairs
    figure, axes = _figure(len(rows), len(rows[0]), (2.6, 2.75))
    from matplotlib.image import imread

    for row, across in zip(rows, axes, strict=True):
        for panel in across:
            panel.axis("off")
        for arm, panel in zip(row, across, strict=False):
            if arm in sheets:
                panel.imshow(imread(sheets[arm]), interpolation="antialiased")
                panel.set_title(labels.get(arm, arm))
    return figure


# --- geometry and names -------------------------------------------------------------------------


def grid(cell: int, spacing: float) -> list[Point]:
    """Centres of ``cell`` modes on a square grid around the origin."""
    return [(x, y) for x, y in grid_modes(cell, spacing).tolist()]


def approach(arrow: Sequence[float], centers: Iterable[Point]) -> float:
    """How far (x, y, dx, dy) moves toward the centre that is nearest to (x, y); below 0: away."""
    x, y, dx, dy = arrow
    target = min(centers, key=lambda center: math.dist(center, (x, y)))
    return math.dist(target, (x, y)) - math.dist(target, (x + dx, y + dy))


def in_pairs(members: Iterable[Member]) -> list[str]:
    """The members' arms, each once, a baseline followed by its top-k arms."""
    arms = list(dict.fromkeys(member.arm for member in members))
    families = list(dict.fromkeys(map(without_topk, arms)))
    return sorted(arms, key=lambda arm: (families.index(base := without_topk(arm)), arm != base))


def called(cell: int, name: str) -> str:
    """A cell in words: "25 modes", "held-out digit 4"."""
    return f"{cell} {name}" if name == "modes" else f"{name} {cell}"


def span(values: Iterable[Any]) -> str:
    """Words as they are; numbers from the least to the most."""
    known = sorted(set(values))
    shown = [value if isinstance(value, str) else f"{value:,}" for value in known]
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def _label(arm: str, members: Iterable[Member]) -> str:
    seeds: dict[int, set[int]] = {}
    for member in members:
        if member.arm == arm:
            seeds.setdefault(member.cell, set()).add(member.seed)
    return f"{ARMS.get(arm, arm)}, {_seeds(map(len, seeds.values()))}"


def _seeds(counts: Iterable[int]) -> str:
    number = span(counts)
    return f"{number} seed{'s' * (number != '1')}"


def _curve(values: Series, cell: int, arm: str) -> dict[int, Summary]:
    by_iteration: dict[int, list[float]] = {}
    for (member, iteration), value in values.items():
        if member[:2] == (cell, arm):
            by_iteration.setdefault(iteration, []).append(value)
    found = {iteration: summary(by_iteration[iteration]) for iteration in sorted(by_iteration)}
    return {iteration: point for iteration, point in found.items() if point}


def _draw_curve(
    panel: Axes, curve: Mapping[int, Summary], line: str, marker: str, style: Mapping[str, Any]
) -> None:
    """Means with one standard deviation as a band; markers where there are few."""
    means = [point.mean for point in curve.values()]
    panel.plot(list(curve), means, line, marker=marker if len(curve) < 3 else "", **style)
    low = [point.mean - (point.std or 0) for point in curve.values()]
    high = [point.mean + (point.std or 0) for point in curve.values()]
    panel.fill_between(list(curve), low, high, color=style["color"], alpha=0.18, linewidth=0)


# --- panels -------------------------------------------------------------------------------------


def _figure(
    rows: int, columns: int, size: tuple[float, float], **shared: Any
) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    """Panels of that size in inches."""
    needed("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(size[0] * columns + 0.5, size[1] * rows + 0.6),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(11)
    return figure, axes


def _logarithmic(panel: Axes) -> None:
    """A logarithmic y axis, its numbers in full."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    panel.set_yscale("log")
    for which in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        which(FormatStrFormatter("%g"))
    panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))


def _legend(figure: Figure) -> None:
    """One for all panels, above them."""
    entries: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    place: Any = "outside upper center"
    widths = [0.6 + 0.075 * len(label) for label in entries]  # about, in inches
    width = figure.get_figwidth()
    columns = len(entries) if sum(widths) < width else max(1, int(width / max(widths)))
    columns = min(5, columns)
    figure.legend(entries.values(), entries.keys(), loc=place, ncols=columns, frameon=False)


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
