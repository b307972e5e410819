"""The table of experiments: what the paper did, and what it found.

Sinha, Zhao, Goyal, Raffel and Odena, "Top-k Training of GANs" (arXiv 2002.06224).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from topk_plugin.reference.models import ABLATED, pairs


@dataclass(frozen=True)
class Preset:
    """How long a run is: settings other than the trainer's defaults, which are the paper's."""

    seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    cells: tuple[int, ...] | None = None  # None: all


class Published(NamedTuple):
    """What the paper's Frechet distances of an experiment are of."""

    data: str  # how its name ends, in which a folder's begins with the folder's own
    real: int
    images: str  # in words
    note: str  # on the paper's numbers
    fake: int = 50_000
    score: str = "FID"

    def equals(self, known: Mapping[str, Any]) -> bool:
        """Whether a row's distance is of the same kind."""
        counts = (known["score"], known["real"], known["fake"])
        return counts == (self.score, self.real, self.fake) and known["data"].endswith(self.data)


@dataclass(frozen=True)
class Experiment:
    """One training campaign, and the paper's numbers for it."""

    title: str
    trainer: str  # module of topk_plugin.reference
    cell: str  # what a cell is
    cells: tuple[int, ...]
    arms: tuple[str, ...]
    presets: Mapping[str, Preset]
    paper: Mapping[tuple[str, int, str], float] = field(default_factory=dict)
    """By metric, cell and arm."""
    published: Published | None = None  # what the paper's Frechet distances are of
    ablation: bool = False  # whether arms vary top-k, not the model
    open: tuple[str, ...] = ()  # settings that the paper does not give


VARIANTS: dict[str, Mapping[str, Any]] = {
    "leaky ReLU": {},
    "ReLU": {"activation": "relu"},
    "tanh": {"activation": "tanh"},
    "ReLU, spacing 0.5": {"activation": "relu", "spacing": 0.5},
    "ReLU, spacing 2": {"activation": "relu", "spacing": 2.0},
    "ReLU, 5 layers": {"activation": "relu", "layers": 5},
    "ReLU, 5 layers, spacing 2": {"activation": "relu", "layers": 5, "spacing": 2.0},
    "ReLU, latent 32": {"activation": "relu", "latent": 32},
    "ReLU, latent 256": {"activation": "relu", "latent": 256},
    "ReLU, latent 32, spacing 2": {"activation": "relu", "latent": 32, "spacing": 2.0},
    "ReLU, latent 32, 5 layers": {"activation": "relu", "latent": 32, "layers": 5},
    "ReLU, uniform prior": {"activation": "relu", "prior": "uniform"},
    "ReLU, uniform prior, spacing 2": {"activation": "relu", "prior": "uniform", "spacing": 2.0},
    "ReLU, beta1 0.5": {"activation": "relu", "beta1": 0.5},
    "ReLU, beta1 0.5, spacing 2": {"activation": "relu", "beta1": 0.5, "spacing": 2.0},
    "ReLU, beta1 0.5, spacing 2, latent 64": {
        "activation": "relu", "beta1": 0.5, "spacing": 2.0, "latent": 64,
    },
}  # fmt: skip
"""Arms of the study: what differs from Table 1's defaults, which are those of the best variant."""

SCHEDULES: dict[str, Mapping[str, Any]] = {
    "top-k": {},
    "restore-5-15": {"gamma": 0.95, "nu": 0.75, "restore": (5, 15)},
    "restore-10-20": {"gamma": 0.95, "nu": 0.75, "restore": (10, 20)},
    "restore-30-40": {"gamma": 0.95, "nu": 0.75, "restore": (30, 40)},
    "restore-15-25": {"gamma": 0.99, "nu": 0.75, "restore": (15, 25)},
}
"""Top-k arms of Table 1's GAN: the paper's schedule, and others, by what differs from it."""

ON_CIFAR10 = Published(
    "CIFAR-10, training part",
    50_000,
    "the 50,000 training images of CIFAR-10",
    "The paper's numbers have no seeds; it does not say what its ± is of.",
)
ON_IMAGENET = Published(
    ", 1,281,167 images of 1,000 classes at 128x128",
    1_281_167,
    "ImageNet's 1,281,167 training images of 1,000 classes at 128x128",
    "The paper's numbers have no seeds; it does not say which real images they are of.",
)


def _table(
    metric: str, arms: tuple[str, ...], rows: Mapping[int, tuple[float, ...]]
) -> dict[tuple[str, int, str], float]:
    return {
        (metric, cell, arm): number
        for cell, numbers in rows.items()
        for arm, number in zip(arms, numbers, strict=True)
    }


GAN = ("gan", "top-k")
OPEN = (
    "layers", "activation", "latent", "prior", "spacing", "beta1", "beta2", "critic_steps",
)  # fmt: skip
ANOMALY = ("bigan", "top-k+bigan", "meg", "top-k+meg")

IMAGES = tuple(pairs("dcgan", "wgan", "wgan-gp", "msgan", "sngan", "sagan"))
IMAGENET = tuple(pairs("sagan-128"))
CONDITIONAL = tuple(pairs("biggan", "icr-biggan"))

SMOKE = {
    "dataset": "digits",
    "features": "classifier",
    "width": 1 / 16,
    "gamma": 0.75,
    "iterations": 20,
    "samples": 500,
    "measure_every": 10,
    "score_every": 20,
}
SHORT = {
    "dataset": "digits",
    "features": "classifier",
    "width": 1 / 8,
    "batch": 64,
    "iterations": 300,
    "samples": 1_000,
    "measure_every": 50,
    "score_every": 150,
}
"""Of experiments on images, on the embedded data."""

EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        title="Table 1: mixtures of Gaussians",
        trainer="mixture",
        cell="modes",
        cells=(25, 64, 100),
        arms=GAN,
        presets={
            "smoke": Preset(1, {"iterations": 160, "decay_every": 4, "measure_every": 80}),
            "short": Preset(2, {"iterations": 10_000, "decay_every": 200, "measure_every": 1_000}),
            "paper": Preset(10),
        },
        paper=_table("high_quality", GAN, {25: (85.6, 95.5), 64: (73.8, 81.8), 100: (40.3, 54.7)})
        | _table("modes", GAN, {25: (100, 100), 64: (96.2, 100), 100: (94.6, 100)}),
        open=OPEN,
    ),
    "schedules": Experiment(
        title="Table 1 under schedules that give k back",
        trainer="mixture",
        cell="modes",
        cells=(25,),
        arms=("gan", *SCHEDULES),
        presets={
            "smoke": Preset(1, {"iterations": 160, "decay_every": 4, "measure_every": 80}),
            "short": Preset(2, {"iterations": 10_000, "decay_every": 200, "measure_every": 1_000}),
            "paper": Preset(4),
        },
        paper=_table("high_quality", GAN, {25: (85.6, 95.5)})
        | _table("modes", GAN, {25: (100, 100)}),
        open=OPEN,
    ),
    "study": Experiment(
        title="Table 1's baseline under settings that the paper leaves open",
        trainer="study",
        cell="modes",
        cells=(25, 64, 100),
        arms=tuple(prefix + name for name in VARIANTS for prefix in ("", "top-k+")),
        presets={
            "smoke": Preset(1, {"iterations": 40, "measure_every": 40}, cells=(25,)),
            "short": Preset(1, {"iterations": 5_000, "measure_every": 5_000}),
            "paper": Preset(2, {"measure_every": 12_500}),
        },
        paper=_table("high_quality", ("gan",), {25: (85.6,), 64: (73.8,), 100: (40.3,)})
        | _table("modes", ("gan",), {25: (100,), 64: (96.2,), 100: (94.6,)}),
        open=OPEN,
    ),
    "probe": Experiment(
        title="Figures 2, 3 and 4: one update by the best and by the worst samples",
        trainer="probe",
        cell="modes",
        cells=(25,),
        arms=("gan",),
        presets={
            "smoke": Preset(1, {"iterations": 400, "measure_every": 400}),
            "short": Preset(2, {"iterations": 5_000, "measure_every": 5_000}),
            "paper": Preset(10),
        },
        open=(*OPEN, "probes", "step", "step_rate"),
    ),
    "table2": Experiment(
        title="Table 2: anomaly detection",
        trainer="anomaly",
        cell="held-out digit",
        cells=(1, 4, 5, 7, 9),
        arms=ANOMALY,
        presets={
            "smoke": Preset(
                1,
                {
                    "meg_epochs": 2,
                    "meg_dim": 16,
                    "meg_latent": 16,
                    "meg_learning_rate": 1e-3,
                    "meg_energy_steps": 2,
                    "bigan_epochs": 2,
                    "bigan_dim": 4,
                    "bigan_latent": 16,
                    "bigan_learning_rate": 3e-3,
                    "bigan_average": 0.9,
                    "gamma": 0.75,
                    "measure_every": 1_000,
                },
            ),
            "short": Preset(
                1,
                {
                    "meg_epochs": 20,
                    "meg_dim": 64,
                    "bigan_epochs": 40,
                    "bigan_dim": 16,
                    "bigan_learning_rate": 1e-4,
                    "gamma": 0.97,
                    "measure_every": 1_000,
                },
            ),
            "paper": Preset(3, {"dataset": "mnist"}),
        },
        paper=_table(
            "trapezoid",
            ("bigan", "meg", "top-k+meg"),
            {
                1: (0.287, 0.281, 0.320),
                4: (0.443, 0.401, 0.478),
                5: (0.514, 0.402, 0.561),
                7: (0.347, 0.29, 0.358),
                9: (0.307, 0.342, 0.367),
            },
        ),
        open=("gamma", "nu", "split", "companions"),
    ),
    "table3": Experiment(
        title="Table 3: images",
        trainer="images",
        cell="pixels",
        cells=(32,),
        arms=IMAGES,
        presets={
            "smoke": Preset(1, SMOKE),
            "short": Preset(1, {**SHORT, "gamma": 0.9}),
            "paper": Preset(3),
        },
        paper=_table(
            "fid",
            IMAGES,
            {
                32: (
                    38.09,
                    35.62,
                    37.33,
                    34.41,
                    31.80,
                    29.83,
                    27.33,
                    26.54,
                    21.36,
                    19.80,
                    19.02,
                    17.93,
                )
            },
        ),
        published=ON_CIFAR10,
        open=("iterations", "average"),
    ),
    "table4": Experiment(
        title="Table 4: ImageNet",
        trainer="images",
        cell="pixels",
        cells=(128,),
        arms=IMAGENET,
        presets={
            "smoke": Preset(1, {**SMOKE, "batch": 16, "decay_every": 4, "samples": 200}),
            "short": Preset(1, {**SHORT, "batch": 16, "gamma": 0.9, "samples": 500}),
            "paper": Preset(
                1,
                {
                    "dataset": "folder",
                    "batch": 256,
                    "gamma": 0.98,
                    "score_every": 50_000,
                },
            ),
        },
        paper=_table("fid", IMAGENET, {128: (19.98, 18.44)}),
        published=ON_IMAGENET,
        open=("average",),
    ),
    "table5": Experiment(
        title="Table 5: gamma, nu, and whose loss",
        trainer="images",
        cell="pixels",
        cells=(32,),
        arms=tuple(ABLATED),
        # what gamma does in a short run takes as many decays as in the paper's, of 256 epochs
        presets={
            "smoke": Preset(1, {**SMOKE, "gamma": 0.99, "batch": 64, "decay_every": 1}),
            "short": Preset(1, {**SHORT, "decay_every": 1}),
            "paper": Preset(3),
        },
        paper=_table(
            "fid",
            tuple(ABLATED),
            {32: (19.02, 17.93, 18.68, 18.14, 21.60, 25.30, 18.47, 18.08, 27.44, 27.57)},
        ),
        published=ON_CIFAR10._replace(note="The paper's numbers have no seeds and no spread."),
        ablation=True,
        open=("iterations", "average"),
    ),
    "neurips": Experiment(
        title="The later version (NeurIPS 2020): conditional CIFAR-10",
        trainer="images",
        cell="pixels",
        cells=(32,),
        arms=CONDITIONAL,
        presets={
            "smoke": Preset(
                1,
                {**SMOKE, "batch": 16, "decay_every": 2, "iterations": 10, "score_every": 10},
            ),
            "short": Preset(1, {**SHORT, "gamma": 0.9, "iterations": 100, "decay_every": 10}),
            "paper": Preset(3, {"batch": 64}),
        },
        paper=_table("fid", CONDITIONAL[2:], {32: (9.21, 8.57)}),
        published=ON_CIFAR10._replace(
            note="The paper's numbers are of its abstract, which says no more about them."
        ),
        open=("gamma", "nu", "batch", "iterations", "average"),
    ),
}
"""By the name of the run. Settings that the paper leaves open are in the trainers' ``Settings``."""

RESULTS = {
    "table1": "table1",
    "table2": "table2",
    "table3": "table3",
    "table4": "table4",
    "table5": "table5",
    "neurips": "neurips",
    "figure2": "probe",
    "figure3": "probe",
    "figure4": "probe",
    "schedules": "schedules",
    "study": "study",
}
"""What `topk reproduce` can be asked for, and the run that gives it."""
