"""The table of experiments: what the paper did, and what it found.

Sinha, Zhao, Goyal, Raffel and Odena, "Top-k Training of GANs" (arXiv 2002.06224).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Preset:
    """How long a run is: settings other than the trainer's defaults, which are the paper's."""

    seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    cells: tuple[int, ...] | None = None  # None: all


@dataclass(frozen=True)
class Experiment:
    """One training campaign, and the paper's numbers for it."""

    title: str
    trainer: str  # module of topk_plugin.reference
    cells: tuple[int, ...]
    arms: tuple[str, ...]
    presets: Mapping[str, Preset]
    paper: Mapping[tuple[str, int, str], float] = field(default_factory=dict)
    """By metric, cell and arm."""
    open: tuple[str, ...] = ()  # settings that the paper does not give


@dataclass(frozen=True)
class Model:
    """One GAN of images, as the paper that proposed it has it; the batch is a setting."""

    title: str
    family: str  # of networks: "dcgan", "resnet" or "biggan"
    loss: str  # of losses.LOSSES
    latent: int
    generator_width: int
    critic_width: int
    learning_rate: float  # of the generator
    critic_learning_rate: float
    iterations: int  # generator steps
    betas: tuple[float, float] = (0.0, 0.9)
    optimizer: str = "adam"  # or "rmsprop"
    weight_decay: float = 0.0
    decays: bool = False  # whether learning rates fall linearly to 0
    critic_steps: int = 1  # for each generator step
    prior: str = "normal"  # or "uniform", in [-1, 1]
    dequantised: bool = False  # whether noise of one grey level is added to real images
    bias: bool = True  # in convolutions
    conditional: bool = False
    spectral: str = ""  # whose weights have spectral norms: "critic" or "both"
    attention: int | None = None  # edge in pixels of the maps that attend to themselves
    clip: float = 0.0  # bound of the critic's weights
    penalty: float = 0.0  # weight of the gradient penalty
    mode_seeking: float = 0.0  # weight of that term
    average: float = 0.0  # decay of the generator's averaged weights; 0: no average
    average_from: int = 0  # generator steps before which the average is the latest weights
    balanced: float = 0.0  # weight of consistency under augmentation, of real and of fake images
    latent_noise: float = 0.0  # standard deviation of what is added to latents for the next two
    latent_consistency: float = 0.0  # weight of it in the critic's loss
    latent_diversity: float = 0.0  # weight of it in the generator's loss


BIGGAN = Model(
    "BigGAN", "biggan", "hinge", latent=80, generator_width=96, critic_width=96,
    learning_rate=2e-4, critic_learning_rate=2e-4, betas=(0.5, 0.999), critic_steps=5,
    spectral="both", attention=16, conditional=True, average=0.9999, average_from=1_000,
    iterations=100_000,
)  # fmt: skip

MODELS: dict[str, Model] = {
    # Radford et al. (2015), section 4: prior, z, Adam, initial weights. Widths: pytorch/examples,
    # dcgan/main.py. The paper trains no GAN on CIFAR-10, so that the length is open.
    "dcgan": Model(
        "DCGAN", "dcgan", "non-saturating", latent=100, prior="uniform", generator_width=64,
        critic_width=64, bias=False, learning_rate=2e-4, critic_learning_rate=2e-4,
        betas=(0.5, 0.999), iterations=100_000,
    ),
    # Arjovsky et al. (2017), algorithm 1: RMSprop, its rate, 5 critic steps, the bound. Networks
    # and latents: martinarjovsky/WassersteinGAN, main.py; its 100 critic steps at the first 25 and
    # each 500th generator step are not in the paper. The length is open.
    "wgan": Model(
        "WGAN, clipped", "dcgan", "wasserstein", latent=100, generator_width=64, critic_width=64,
        bias=False, optimizer="rmsprop", learning_rate=5e-5, critic_learning_rate=5e-5,
        critic_steps=5, clip=0.01, iterations=100_000,
    ),
    # Gulrajani et al. (2017) by igul222/improved_wgan_training, gan_cifar_resnet.py, lines 36 to
    # 51, without labels; its generator's batch is twice the critic's.
    "wgan-gp": Model(
        "WGAN-GP", "resnet", "wasserstein", latent=128, generator_width=128, critic_width=128,
        learning_rate=2e-4, critic_learning_rate=2e-4, decays=True, critic_steps=5, penalty=10.0,
        dequantised=True, iterations=100_000,
    ),
    # Mao et al. (2019) by HelenMao/MSGAN, DCGAN-Mode-Seeking: model.py, networks.py; the length is
    # options.py's 200 epochs.
    "msgan": Model(
        "MSGAN", "dcgan", "non-saturating", latent=100, generator_width=128, critic_width=128,
        learning_rate=2e-4, critic_learning_rate=2e-4, betas=(0.5, 0.999), weight_decay=1e-4,
        conditional=True, mode_seeking=1.0, iterations=200 * 390,
    ),
    # Miyato et al. (2018) by pfnet-research/sngan_projection, configs/sn_cifar10_unconditional.yml
    # and datasets/cifar10.py; its generator's batch is twice the critic's.
    "sngan": Model(
        "SN-GAN", "resnet", "hinge", latent=128, generator_width=256, critic_width=128,
        learning_rate=2e-4, critic_learning_rate=2e-4, decays=True, critic_steps=5,
        spectral="critic", dequantised=True, iterations=50_000,
    ),
    # Zhang et al. (2018), section 4: Adam, both rates, one critic step, conditional; it trains on
    # ImageNet alone. At 32 pixels the networks are PyTorch-StudioGAN's, configs/CIFAR10/SAGAN.yaml,
    # and so is the length (src/config.py); its betas, rates and 5 critic steps are not the paper's.
    "sagan": Model(
        "SAGAN", "resnet", "hinge", latent=128, generator_width=256, critic_width=128,
        learning_rate=1e-4, critic_learning_rate=4e-4, spectral="both", attention=16,
        conditional=True, iterations=100_000,
    ),
    # The same at 128 pixels, Zhang et al. (2018), section 4, by brain-research/self-attention-gan:
    # model.py and generator.py (widths, latents, both rates, attention, a million steps of a batch
    # of 4 x 64 in its README); its beta2 is TensorFlow's 0.999, the paper's is 0.9.
    "sagan-128": Model(
        "SAGAN", "resnet", "hinge", latent=128, generator_width=64, critic_width=64,
        learning_rate=1e-4, critic_learning_rate=4e-4, spectral="both", attention=32,
        conditional=True, iterations=1_000_000,
    ),
    # Brock et al. (2019) trains on ImageNet alone. At 32 pixels it is PyTorch-StudioGAN's:
    # configs/CIFAR10/BigGAN.yaml, and src/config.py for rates, betas and length; without its random
    # flips of real images and its epsilon of Adam's.
    "biggan": BIGGAN,
    # Zhao et al. (2020) on that BigGAN, by configs/CIFAR10/BigGAN-ICR.yaml of PyTorch-StudioGAN.
    # Most ports agree on the weights 10 and 0.5, not on 20 (others 5) and 0.05 (others 0.03).
    "icr-biggan": replace(
        BIGGAN, title="ICR-BigGAN", balanced=10.0, latent_noise=0.05, latent_consistency=20.0,
        latent_diversity=0.5,
    ),
}  # fmt: skip
"""By name."""


@dataclass(frozen=True)
class Arm:
    """How one arm of an experiment on images is trained."""

    model: str  # of MODELS
    topk: tuple[str, ...] = ()  # in whose loss: "generator", "critic"
    gamma: float | None = None  # None: as the run's settings have it
    nu: float | None = None


def _pairs(*models: str) -> dict[str, Arm]:
    """A baseline and its top-k for each model."""
    return {
        before + name: Arm(name, topk)
        for name in models
        for before, topk in (("", ()), ("top-k+", ("generator",)))
    }


ABLATED = {
    **_pairs("sagan"),
    **{f"gamma={g}": Arm("sagan", ("generator",), gamma=g) for g in (0.999, 0.9, 0.75, 0.5)},
    **{f"nu={nu}": Arm("sagan", ("generator",), nu=nu) for nu in (0.9, 0.75)},
    "critic": Arm("sagan", ("critic",)),
    "both": Arm("sagan", ("generator", "critic")),
}
"""Table 5: a baseline, the proposed top-k, and what differs from it in one thing."""

ARMS: dict[str, Arm] = {**_pairs(*MODELS), **ABLATED}
"""Arms of the experiments on images, by name."""

STUDIED = (
    "leaky ReLU", "ReLU", "tanh", "ReLU, spacing 0.5", "ReLU, spacing 2", "ReLU, 5 layers",
    "ReLU, 5 layers, spacing 2", "ReLU, latent 32", "ReLU, latent 256",
    "ReLU, latent 32, spacing 2", "ReLU, latent 32, 5 layers", "ReLU, uniform prior",
    "ReLU, uniform prior, spacing 2", "ReLU, beta1 0.5", "ReLU, beta1 0.5, spacing 2",
    "ReLU, beta1 0.5, spacing 2, latent 64",
)  # fmt: skip
"""Variants of study.py."""


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

IMAGES = tuple(_pairs("dcgan", "wgan", "wgan-gp", "msgan", "sngan", "sagan"))
IMAGENET = tuple(_pairs("sagan-128"))
CONDITIONAL = tuple(_pairs("biggan", "icr-biggan"))

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
    "study": Experiment(
        title="Table 1's baseline under settings that the paper leaves open",
        trainer="study",
        cells=(25, 64, 100),
        arms=STUDIED,
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
        open=("iterations", "average"),
    ),
    "table4": Experiment(
        title="Table 4: ImageNet",
        trainer="images",
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
        open=("average",),
    ),
    "table5": Experiment(
        title="Table 5: gamma, nu, and whose loss",
        trainer="images",
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
        open=("iterations", "average"),
    ),
    "neurips": Experiment(
        title="The later version (NeurIPS 2020): conditional CIFAR-10",
        trainer="images",
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
    "study": "study",
}
"""What `topk reproduce` can be asked for, and the run that gives it."""
