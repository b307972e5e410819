"""Figures of the reference experiments, from plain numbers; nothing is drawn on a screen.

Colours are Okabe and Ito's, which the colour-blind can tell apart; arms also differ in line style
and marker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topk_plugin.extras import needed
from topk_plugin.reference.report.arms import ARMS, called, in_pairs, span
from topk_plugin.reference.runs.records import Member
from topk_plugin.reference.statistics import Summary, summary, without_topk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "oDs^vP"
LINES = ("--", "-")  # a baseline, and top-k
INK = "0.35"

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
    figure, axes = new_figure(len(panels), len(cells), size, sharex="col", sharey="row")
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for (quantity, values), across in zip(panels.items(), axes, strict=True):
        across[0].set_ylabel(quantity)
        for cell, panel in zip(cells, across, strict=True):
            for number, arm in enumerate(arms):
                curve = _curve(values, cell, arm)
                if not curve:
                    continue
                style = {"color": COLORS[number % len(COLORS)], "label": _label(arm, members)}
                line = LINES[arm != without_topk(arm)]
                _draw_curve(panel, curve, line, MARKERS[number % len(MARKERS)], style)
            panel.xaxis.set_major_locator(MaxNLocator(5 if len(cells) < 4 else 3))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for cell, panel in zip(cells, axes[0], strict=True):
        panel.set_title(called(cell, cell_name))
    for panel in axes[-1]:
        panel.set_xlabel("iteration")
    _legend(figure)
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
    figure, axes = new_figure(math.ceil(len(panels) / columns), columns, (4.9, 3.3))
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
    figure, axes = new_figure(1, len(panels), (3.6, 3.4), sharey="row")
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
    figure, axes = new_figure(math.ceil(len(groups) / columns), columns, size)
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
    figure, axes = new_figure(len(rows), len(rows[0]), (2.6, 2.75))
    from matplotlib.image import imread

    for row, across in zip(rows, axes, strict=True):
        for panel in across:
            panel.axis("off")
        for arm, panel in zip(row, across, strict=False):
            if arm in sheets:
                panel.imshow(imread(sheets[arm]), interpolation="antialiased")
                panel.set_title(labels.get(arm, arm))
    return figure


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


def new_figure(
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
