"""The sections of Tables 3 and 4 and of the later version's: Frechet distances that are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from topk_plugin.reference.experiments import Published
from topk_plugin.reference.report.arms import labels_of, proposed, role
from topk_plugin.reference.report.blocks import (
    CURVES,
    Block,
    Drawing,
    comparison_table,
    listed,
    of_cell,
    proof,
)
from topk_plugin.reference.report.figures import models_figure, sheets_figure
from topk_plugin.reference.report.folder import (
    ALIKE,
    Run,
    at_the_end,
    counted,
    member_of,
    of_kind,
    series,
)
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.statistics import Paper, compare


class Distances(NamedTuple):
    """Frechet distances that may stand in one table."""

    known: Row  # one of their rows: what they have in common
    values: Mapping[tuple[Member, int], float]
    lengths: Mapping[Member, int]
    suffix: str  # of the names of their figures
    paper: Paper  # numbers of the paper's that may stand beside them
    note: str  # on those, or on why there are none

    @property
    def title(self) -> str:
        """What they are."""
        known = self.known
        average = f", weights averaged by {known['average']:g}" if known["average"] else ""
        return (
            f"{known['score']}, {known['fake']:,} samples against {known['real']:,} images of "
            f"{known['data']}{average}; lower is better"
        )

    @property
    def quantity(self) -> str:
        """For an axis."""
        name: str = self.known["score"]
        return name.split(" of ")[0]

    @property
    def ends(self) -> dict[Member, float]:
        """Each member's at its last iteration."""
        last = {key: v for key, v in self.values.items() if key[1] == self.lengths[key[0]]}
        return at_the_end(last)

    def curves(self, cell: int) -> dict[tuple[Member, int], float] | None:
        """Those of a cell; None where there are only those of the end."""
        own = {key: v for key, v in self.values.items() if key[0].cell == cell}
        return own if any(i < self.lengths[member] for member, i in own) else None


def distances(run: Run, paper: Paper) -> Iterator[Distances]:
    """The Frechet distances of the members that are not left out, by what they have in common."""
    rows, final = counted(run)
    scored, published = of_kind(rows, "score"), run.about.published
    assert published is not None  # of an experiment on images
    for number, alike in enumerate(dict.fromkeys(map(_alike, of_kind(final, "score"))), start=1):
        own = [row for row in scored if _alike(row) == alike]
        values = series(own, "fid", own[0]["score"])
        lengths = {member_of(row): row["iterations"] for row in own}
        why = _unlike(run, own[0], published)
        note = f"The paper's numbers are left out: {why}."
        suffix = f"-{number}" * (number > 1)
        beside = ({}, note) if why else (paper, published.note)
        yield Distances(own[0], values, lengths, suffix, *beside)


def _alike(row: Row) -> tuple[Any, ...]:
    return (row["score"], *(row[name] for name in ALIKE))


def _unlike(run: Run, known: Row, published: Published) -> str | None:
    """Why the paper's numbers may not stand beside a distance."""
    if not published.equals(known):
        return (
            f"they are FID by Inception of {published.fake:,} samples against "
            f"{published.images}, and these are not"
        )
    if role(run) != "proposed":
        gamma, nu = proposed(run)
        varied = ", but for what an arm varies" * run.about.ablation
        return f"they are of gamma {gamma} and nu {nu}{varied}"
    return None


def origin(found: Distances) -> Iterator[Block]:
    """Below a table of distances: by which features, of which data; on the paper's numbers."""
    yield listed(
        [f"features: sha256 {found.known['features_digest']}, {found.known['version']}",
         f"data: sha256 {found.known['data_digest']}"]
    )  # fmt: skip
    yield found.note


def models_of_images(run: Run, paper: Paper) -> Iterator[Block]:
    """Of Tables 3 and 4 and the later version's: models of images, without and with top-k."""
    for found in distances(run, paper):
        compared = compare(found.ends, run.cells, run.arms, "fid", found.paper)
        yield comparison_table(found.title, compared, "pixels", 2)
        yield from origin(found)
        for cell in run.cells:
            if curves := found.curves(cell):
                yield Drawing(
                    f"{run.experiment}{of_cell(run, cell)}{found.suffix}",
                    models_figure(found.quantity, curves),
                    CURVES,
                )
    yield from proof(run, counted(run)[1])
    yield from sheet_drawings(run, "both")


def sheet_drawings(run: Run, arms: str) -> Iterator[Block]:
    """The arms' sheets of samples, one figure for each cell."""
    for cell in run.cells:
        drawn = sorted(of_kind(counted(run)[1], "sheet"), key=lambda row: -row["seed"])
        sheets = {
            row["arm"]: run.folder / "jobs" / row["job"] / row["file"]
            for row in drawn
            if row["cell"] == cell
        }  # of the lowest seed
        sheets = {arm: path for arm, path in sheets.items() if path.is_file()}
        if sheets:
            yield Drawing(
                f"samples{of_cell(run, cell)}",
                sheets_figure(sheets, labels_of(run)),
                f"Samples at the end, of one seed, {arms} arms from the same latents.",
            )
