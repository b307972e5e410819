"""The GANs of images that the experiments train, each as the paper that proposed it has it, and the
arms that they make: where top-k comes in, with which gamma and nu.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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


def pairs(*models: str) -> dict[str, Arm]:
    """A baseline and its top-k for each model."""
    return {
        before + name: Arm(name, topk)
        for name in models
        for before, topk in (("", ()), ("top-k+", ("generator",)))
    }


ABLATED = {
    **pairs("sagan"),
    **{f"gamma={g}": Arm("sagan", ("generator",), gamma=g) for g in (0.999, 0.9, 0.75, 0.5)},
    **{f"nu={nu}": Arm("sagan", ("generator",), nu=nu) for nu in (0.9, 0.75)},
    "critic": Arm("sagan", ("critic",)),
    "both": Arm("sagan", ("generator", "critic")),
}
"""Table 5: a baseline, the proposed top-k, and what differs from it in one thing."""

ARMS: dict[str, Arm] = {**pairs(*MODELS), **ABLATED}
"""Arms of the experiments on images, by name."""
