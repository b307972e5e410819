"""Numbers of parameters and layers, for tests of networks of images."""

import torch
from torch import nn

from topk_plugin.reference.networks import biggan, resnet
from topk_plugin.reference.networks.biggan import BigGANCritic, BigGANGenerator
from topk_plugin.reference.networks.dcgan import DCGANCritic, DCGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator

SAGAN = {"classes": 10, "spectral": True}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COUNTS = {
    # martinarjovsky/WassersteinGAN at f7a01e8, models/dcgan.py: DCGAN_G and DCGAN_D, isize 32
    "DCGAN, WGAN": (
        lambda: DCGANGenerator(32, 3, 100, 64), 1_068_928,
        lambda: DCGANCritic(32, 3, 64), 663_296,
    ),
    # the same file with isize 64; pytorch/examples at 77f55b9, dcgan/main.py
    "DCGAN, WGAN 64": (
        lambda: DCGANGenerator(64, 3, 100, 64), 3_576_704,
        lambda: DCGANCritic(64, 3, 64), 2_765_568,
    ),
    # HelenMao/MSGAN at e386c25, DCGAN-Mode-Seeking/networks.py
    "MSGAN": (
        lambda: DCGANGenerator(32, 3, 100, 128, 10, bias=True), 3_531_395,
        lambda: DCGANCritic(32, 3, 128, 10, bias=True), 2_658_689,
    ),
    # torch-mimicry 0.1.16: WGANGPGenerator32(ngf=128) and WGANGPDiscriminator32
    "WGAN-GP": (
        lambda: ResNetGenerator(32, 3, 128, 128), 1_204_483,
        lambda: ResNetCritic(32, 3, 128), 1_053_825,
    ),
    # torch-mimicry 0.1.16: SNGANGenerator32 and SNGANDiscriminator32. pfnet-research's
    # snresnet_32.py has one less in the critic: no bias at the score
    "SN-GAN": (
        lambda: ResNetGenerator(32, 3, 128, 256), 4_276_739,
        lambda: ResNetCritic(32, 3, 128, spectral=True), 1_053_825,
    ),
    # POSTECH-CVLab/PyTorch-StudioGAN at 947b35e, configs/CIFAR10/SAGAN.yaml
    "SAGAN": (
        lambda: ResNetGenerator(32, 3, 128, 256, attention=16, **SAGAN), 4_386_308,
        lambda: ResNetCritic(32, 3, 128, attention=16, **SAGAN), 1_075_586,
    ),
    # the same, configs/CIFAR10/BigGAN.yaml
    "BigGAN": (
        lambda: BigGANGenerator(32, 3, 80, 96, 10, attention=16), 9_416_196,
        lambda: BigGANCritic(32, 3, 96, 10, attention=16), 2_415_170,
    ),
    # the same at 128 pixels with 1000 classes: models/resnet.py with the original's widths, 64,
    # and attention at 32 in both
    "SAGAN 128": (
        lambda: ResNetGenerator(128, 3, 128, 64, 1000, True, 32), 42_078_852,
        lambda: ResNetCritic(128, 3, 64, 1000, True, 32), 39_463_618,
    ),
    # the same, configs/ImageNet/BigGAN-256.yaml; ajbrock/BigGAN-PyTorch at 9845943 with the
    # arguments of scripts/launch_BigGAN_bs256x8.sh has just as many
    "BigGAN 128": (
        lambda: BigGANGenerator(128, 3, 120, 96, 1000, attention=64), 70_433_988,
        lambda: BigGANCritic(128, 3, 96, 1000, attention=64), 87_982_370,
    ),
}  # fmt: skip


def count(network):
    return sum(p.numel() for p in network.parameters())


def layers_of(network):
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding
    of_norms = {m for norm in norms_of(network) for m in norm.modules()}
    return [m for m in network.modules() if isinstance(m, kinds) and m not in of_norms]


def norms_of(network):
    kinds = resnet.Norm | biggan.ConditionalNorm
    return [m for m in network.modules() if isinstance(m, kinds)]
